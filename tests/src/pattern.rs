//! Streams of bytes that can be checked at any place without keeping them.
//!
//! Byte i is byte i mod 8 of mix(seed, i div 8), so every 8 bytes occur in one place only, and a
//! difference can be explained: these bytes belong there instead.

/// The content of one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

const WORD: u64 = 8;

impl Pattern {
    /// The stream that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Writes the bytes from `offset` on into `buffer`.
    pub fn fill(&self, mut offset: u64, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let within = (offset % WORD) as usize;
            let word = self.word(offset / WORD).to_le_bytes();
            let length = buffer.len().min(word.len() - within);
            let (now, rest) = buffer.split_at_mut(length);
            now.copy_from_slice(&word[within..within + length]);
            buffer = rest;
            offset += length as u64;
        }
    }

    /// Compares received bytes with the stream at `offset`.
    pub fn check(&self, offset: u64, received: &[u8]) -> Result<(), Mismatch> {
        let mut expected = vec![0; received.len()];
        self.fill(offset, &mut expected);
        if expected == received {
            return Ok(());
        }
        let at = expected
            .iter()
            .zip(received)
            .take_while(|(a, b)| a == b)
            .count();
        Err(Mismatch {
            offset: offset + at as u64,
            belongs_at: self.find(offset + at as u64, &received[at..]),
        })
    }

    /// Where in the stream `bytes` really are, looked for around `near`.
    fn find(&self, near: u64, bytes: &[u8]) -> Option<u64> {
        const RANGE: u64 = 1 << 20;
        let needle = bytes.get(..WORD as usize)?;
        let start = near.saturating_sub(RANGE);
        let mut around = vec![0; (2 * RANGE) as usize];
        self.fill(start, &mut around);
        around
            .windows(needle.len())
            .position(|window| window == needle)
            .map(|at| start + at as u64)
    }

    /// `SplitMix64`, by index instead of by state.
    fn word(&self, index: u64) -> u64 {
        let mut z = self
            .seed
            .wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A received byte that is not the one sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where in the stream.
    pub offset: u64,
    /// Where what was received belongs: before `offset` it was doubled, behind it something is lost
    /// or out of order.
    pub belongs_at: Option<u64>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offset, belongs_at } = *self;
        match belongs_at {
            Some(at) if at < offset => {
                write!(
                    f,
                    "at byte {offset}: bytes of {at} again ({} doubled)",
                    offset - at
                )
            }
            Some(at) => write!(
                f,
                "at byte {offset}: bytes of {at} ({} missing)",
                at - offset
            ),
            None => write!(f, "at byte {offset}: bytes that were never sent"),
        }
    }
}

impl std::error::Error for Mismatch {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_is_the_same_stream() {
        let pattern = Pattern::new(42);
        let mut whole = [0; 100];
        pattern.fill(0, &mut whole);
        for offset in 0..40 {
            let mut part = [0; 33];
            pattern.fill(offset, &mut part);
            assert_eq!(part, whole[offset as usize..][..33]);
            assert_eq!(pattern.check(offset, &part), Ok(()));
        }
    }

    #[test]
    fn differences_are_explained() {
        let pattern = Pattern::new(42);
        let mut bytes = [0; 64];
        pattern.fill(1000, &mut bytes);
        let lost = pattern
            .check(990, &bytes)
            .expect_err("ten bytes are missing");
        assert_eq!((lost.offset, lost.belongs_at), (990, Some(1000)));
        let doubled = pattern
            .check(1024, &bytes)
            .expect_err("24 bytes come again");
        assert_eq!((doubled.offset, doubled.belongs_at), (1024, Some(1000)));
        let foreign = pattern.check(0, &[0; 32]).expect_err("not of the stream");
        assert_eq!(foreign.belongs_at, None);
    }
}
