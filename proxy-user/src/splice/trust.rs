//! Kernels whose sockmap can be relied on with other people's bytes.

/// How far a kernel's sockmap is relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It has the fixes that are known to matter.
    Trusted,
    /// It is used where the operator asks for it by name.
    OptIn(Doubt),
    /// It is not used.
    Refused(Doubt),
}

/// What is wrong with a kernel's sockmap, or may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Its version is not known.
    VersionUnknown,
    /// Before 5.10, whose verdict programs cannot read what ours do.
    TooOld,
    /// 6.0 to 6.1.31, 6.2 and 6.3: redirected data stalls or is lost in ordinary use.
    Broken,
    /// A maintained line that never got the later rework: 5.10, 5.15, and those between.
    OldLine,
    /// Data is sent twice after a partial send (fixed in 6.1.142 and 6.12.34).
    DuplicatesData,
    /// Data is lost when a send is tried again (fixed in 6.1.142 and 6.12.35).
    LosesData,
    /// CVE-2026-43016 (fixed in 6.1.191 and 6.12.81).
    UseAfterFree,
    /// Not known to have all of these fixes.
    Unverified,
}

impl Doubt {
    /// Stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::VersionUnknown => "kernel-version-unknown",
            Self::TooOld => "kernel-too-old",
            Self::Broken => "kernel-sockmap-broken",
            Self::OldLine => "kernel-old-line",
            Self::DuplicatesData => "kernel-duplicates-data",
            Self::LosesData => "kernel-loses-data",
            Self::UseAfterFree => "kernel-use-after-free",
            Self::Unverified => "kernel-unverified",
        }
    }

    /// The same for people.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::VersionUnknown => "the kernel's version is not known",
            Self::TooOld => "kernels before 5.10 lack what the sockmap engine needs",
            Self::Broken => "sockmap stalls or loses data in kernels 6.0 to 6.1.31, 6.2 and 6.3",
            Self::OldLine => "sockmap of kernels before 6.0 never got the later fixes",
            Self::DuplicatesData => "this kernel's sockmap can send data twice (6.1.142, 6.12.34)",
            Self::LosesData => "this kernel's sockmap can lose data (6.1.142, 6.12.35)",
            Self::UseAfterFree => "this kernel has CVE-2026-43016 (6.1.191, 6.12.81)",
            Self::Unverified => "this kernel is not known to have the fixes that sockmap needs",
        }
    }
}

/// How far the sockmap of a kernel, given as (major, minor, patch), is relied on.
///
/// Distributions that carry fixes under an old number are doubted without need; `--splice sockmap`
/// is for them.
#[must_use]
pub const fn trust(version: Option<(u32, u32, u32)>) -> Trust {
    use Doubt::{
        Broken, DuplicatesData, LosesData, OldLine, TooOld, Unverified, UseAfterFree,
        VersionUnknown,
    };
    let Some(version) = version else {
        return Trust::OptIn(VersionUnknown);
    };
    match version {
        (0..=4, _, _) | (5, 0..=9, _) => Trust::Refused(TooOld),
        (5, _, _) => Trust::OptIn(OldLine),
        (6, 0 | 2 | 3, _) | (6, 1, 0..=31) => Trust::Refused(Broken),
        (6, 1, 32..=141) | (6, 12, 0..=33) => Trust::OptIn(DuplicatesData),
        (6, 12, 34) => Trust::OptIn(LosesData),
        // For 6.18 and 6.19 the border is inferred from the dates of stable releases.
        (6, 1, 142..=190) | (6, 12, 35..=80) | (6, 18, 0..=21) | (6, 19, 0..=11) => {
            Trust::OptIn(UseAfterFree)
        }
        (6, 1 | 12 | 18 | 19, _) => Trust::Trusted,
        (6, _, _) => Trust::OptIn(Unverified),
        (7.., _, _) => Trust::Trusted,
    }
}

#[cfg(test)]
mod tests {
    use super::Doubt::*;
    use super::Trust::*;
    use super::*;

    /// A test for each row, and for both sides of each border.
    #[test]
    fn the_table_row_by_row() {
        for (version, expected) in [
            ((4, 19, 300), Refused(TooOld)),
            ((5, 4, 250), Refused(TooOld)),
            ((5, 9, 16), Refused(TooOld)),
            ((5, 10, 0), OptIn(OldLine)),
            ((5, 15, 180), OptIn(OldLine)),
            ((5, 19, 17), OptIn(OldLine)),
            ((6, 0, 19), Refused(Broken)),
            ((6, 1, 31), Refused(Broken)),
            ((6, 1, 32), OptIn(DuplicatesData)),
            ((6, 1, 141), OptIn(DuplicatesData)),
            ((6, 1, 142), OptIn(UseAfterFree)),
            ((6, 1, 190), OptIn(UseAfterFree)),
            ((6, 1, 191), Trusted),
            ((6, 2, 16), Refused(Broken)),
            ((6, 3, 13), Refused(Broken)),
            ((6, 6, 100), OptIn(Unverified)),
            ((6, 11, 11), OptIn(Unverified)),
            ((6, 12, 33), OptIn(DuplicatesData)),
            ((6, 12, 34), OptIn(LosesData)),
            ((6, 12, 35), OptIn(UseAfterFree)),
            ((6, 12, 80), OptIn(UseAfterFree)),
            ((6, 12, 81), Trusted),
            ((6, 17, 13), OptIn(Unverified)),
            ((6, 18, 21), OptIn(UseAfterFree)),
            ((6, 18, 22), Trusted),
            ((6, 19, 11), OptIn(UseAfterFree)),
            ((6, 19, 12), Trusted),
            ((7, 0, 0), Trusted),
        ] {
            assert_eq!(trust(Some(version)), expected, "{version:?}");
        }
        assert_eq!(trust(None), OptIn(VersionUnknown));
    }
}
