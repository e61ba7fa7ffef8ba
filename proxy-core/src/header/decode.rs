//! The decoder: which version it is, and how large it may become.
//!
//! Decoding keeps no state between calls. The caller holds one growing buffer and asks again when
//! there is more of it; what is looked at again each time is a line of 107 bytes or a fixed part of
//! 16, and the rest of a version 2 header once, when it is complete.

use thiserror::Error;

use super::{Header, Refusal, v1, v2};

/// Decodes the header at the beginning of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decoder {
    limits: Limits,
}

/// What the bytes so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// A legal header may yet come of them.
    Incomplete {
        /// No header that begins like this has fewer bytes, so whoever has read no more than `need`
        /// has read no payload.
        need: usize,
    },
    /// They begin with a header.
    Complete {
        /// What it says.
        header: Header,
        /// Its length. The bytes after it are payload (rules 5 and 7).
        consumed: usize,
    },
}

impl Decoder {
    /// A decoder that keeps to `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// Decodes a header from `bytes`, all that has been read of the connection so far.
    ///
    /// The answer to more bytes never contradicts the answer to fewer: a refusal stays the same
    /// refusal, and a header the same header.
    pub fn decode(&self, bytes: &[u8]) -> Result<Status, Refusal> {
        if bytes.starts_with(v2::SIGNATURE) {
            return v2::decode(bytes, self.limits);
        }
        if bytes.starts_with(v1::SIGNATURE) {
            return v1::decode(bytes);
        }
        // Rule 6: whoever speaks another protocol here is told at the first byte that differs.
        if v1::SIGNATURE.starts_with(bytes) {
            Ok(Status::Incomplete { need: v1::SHORTEST })
        } else if v2::SIGNATURE.starts_with(bytes) {
            Ok(Status::Incomplete {
                need: v2::FIXED_LEN,
            })
        } else {
            Err(Refusal::NotProxyProtocol)
        }
    }
}

/// How large a header may be.
///
/// Only version 2 leaves a choice: a line of version 1 has at most 107 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    v2_len: usize,
}

/// A cap outside of what the protocol allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "a cap of {asked} bytes on PROXY headers: choose {} to {}",
    Limits::SMALLEST,
    Limits::LARGEST
)]
pub struct LimitError {
    asked: usize,
}

impl Limits {
    /// What every receiver accepts (rule 19).
    pub const SMALLEST: usize = 536;

    /// The most that a header can have: its fixed part, and what a 16-bit length can say.
    pub const LARGEST: usize = v2::FIXED_LEN + u16::MAX as usize;

    /// Caps a version 2 header at `bytes` in all.
    pub fn v2_len(bytes: usize) -> Result<Self, LimitError> {
        if (Self::SMALLEST..=Self::LARGEST).contains(&bytes) {
            Ok(Self { v2_len: bytes })
        } else {
            Err(LimitError { asked: bytes })
        }
    }

    /// The cap on a version 2 header, in bytes in all.
    pub fn max_v2_len(self) -> usize {
        self.v2_len
    }
}

impl Default for Limits {
    /// 4096 bytes: a page holds what load balancers and TLS terminators send, many times over.
    fn default() -> Self {
        Self { v2_len: 4096 }
    }
}
