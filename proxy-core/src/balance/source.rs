//! `source`: a client's server, by weighted rendezvous hashing.
//!
//! Each server gets a score from its key and the client's address, and the highest wins. So the
//! order of servers does not matter, and one that goes or comes moves the clients that it had or gets, and
//! no others. With the score `-w / ln(u)`, `u` uniform within 0 and 1, shares are as the weights
//! (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005).

use std::net::IpAddr;

use siphasher::sip::SipHasher24;

/// The hash's key. It is the same everywhere and for ever, so that two daemons, and one before and
/// after a restart, agree on a client's server.
const HASH_KEY: &[u8; 16] = b"limpid: balance ";

/// The key of a server by its address; `port` is `None` where it is the one that the client has called.
#[must_use]
pub fn key(ip: IpAddr, port: Option<u16>) -> u64 {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&octets(ip));
    bytes[16..].copy_from_slice(&port.unwrap_or(0).to_be_bytes());
    SipHasher24::new_with_key(HASH_KEY).hash(&bytes)
}

/// The score of the server `key` of this weight for `client`: the highest wins. 0 for a weight of 0.
pub(super) fn score(key: u64, weight: u32, client: IpAddr) -> f64 {
    /// 2^53, the number of steps that an `f64` has between 0 and 1.
    const STEPS: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&key.to_be_bytes());
    bytes[8..].copy_from_slice(&octets(client));
    let hash = SipHasher24::new_with_key(HASH_KEY).hash(&bytes);
    // Neither 0 nor 1, of which there is no score.
    let uniform = ((hash >> (u64::BITS - f64::MANTISSA_DIGITS)) as f64 + 0.5) / STEPS;
    f64::from(weight) / -uniform.ln()
}

/// An IPv4 address as the IPv4-mapped one.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_for_ever() {
        // A change of these moves players from their servers, wherever old and new daemons run.
        let server = key("192.0.2.1".parse().unwrap(), Some(80));
        assert_eq!(server, 3_618_983_998_670_372_589);
        let score = score(server, 1, "198.51.100.7".parse().unwrap());
        assert!((score - 1.249_024_762_235_346_8).abs() < 1e-12, "{score}");
    }

    #[test]
    fn port_and_address_make_the_key() {
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        assert_ne!(key(a, Some(80)), key(a, Some(81)));
        assert_ne!(key(a, Some(80)), key(b, Some(80)));
        assert_ne!(key(a, Some(80)), key(a, None));
    }
}
