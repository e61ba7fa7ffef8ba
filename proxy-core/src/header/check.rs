//! What must hold for any bytes at all, as functions that panic where it does not.
//!
//! The fuzz targets call them with bytes they make up, the tests below with the corpus in `fuzz/`.

use proxy_header::{ParseConfig, ProxyHeader};

use super::{
    Absence, Checksum, Decoder, EncodeError, Endpoints, Header, Limits, Refusal, Status, Subject,
    Tlvs, Version, encode_v1, encode_v2,
};

/// What a checksum takes, with its type and length.
const CHECKSUM_LEN: usize = 7;

/// Decodes `bytes` and checks the answer against what [`Decoder`] promises.
pub fn decode(bytes: &[u8]) {
    let decoder = Decoder::default();
    let answer = decoder.decode(bytes);
    assert_ne!(
        answer,
        Err(Refusal::V2Unreadable),
        "checked, and not readable"
    );
    answers_agree_at_every_length(decoder, bytes, &answer);
    if let Ok(Status::Complete { header, consumed }) = &answer {
        assert!(
            *consumed <= bytes.len(),
            "{consumed} consumed of {}",
            bytes.len()
        );
        proxy_header_agrees(header, &bytes[..*consumed]);
    }
}

/// Rules 4 to 6: however the bytes arrive, the answer is the same. Nothing is decided, and then it
/// is decided for good.
fn answers_agree_at_every_length(decoder: Decoder, bytes: &[u8], answer: &Result<Status, Refusal>) {
    let mut needed = 0;
    for len in 0..bytes.len() {
        match decoder.decode(&bytes[..len]) {
            Ok(Status::Incomplete { need }) => {
                assert!(need > len, "{need} needed, {len} given");
                assert!(need >= needed, "{needed} needed at first, then {need}");
                needed = need;
            }
            decided => {
                assert_eq!(
                    &decided,
                    answer,
                    "decided at {len} of {} bytes",
                    bytes.len()
                );
                break;
            }
        }
    }
    if let Ok(Status::Complete { consumed, .. }) = answer {
        assert!(
            needed <= *consumed,
            "{needed} said to be needed, {consumed} were"
        );
    }
}

/// Whatever is accepted here, `proxy-header` reads as the same; but for LOCAL, where it looks at
/// what rule 16 says to skip.
fn proxy_header_agrees(header: &Header, bytes: &[u8]) {
    let theirs = ProxyHeader::parse(bytes, ParseConfig::default());
    match (header.endpoints, theirs) {
        (Endpoints::Tcp(ours), Ok((theirs, len))) => {
            let theirs_addresses = theirs.proxied_address().expect("addresses, as here");
            assert_eq!(ours.client, theirs_addresses.source.into());
            assert_eq!(ours.destination, theirs_addresses.destination.into());
            assert_eq!(bytes.len(), len);
            assert_eq!(header.tlvs.crc32c(), theirs.crc32c());
            assert_eq!(header.tlvs.alpn(), theirs.alpn());
            assert_eq!(header.tlvs.unique_id(), theirs.unique_id());
            assert_eq!(header.tlvs.ssl(), theirs.ssl());
        }
        (Endpoints::Absent(_), Ok((_, len))) => assert_eq!(bytes.len(), len),
        (Endpoints::Absent(Absence::Local), Err(_)) => {}
        (endpoints, Err(error)) => panic!("{endpoints:?} here, {error} in proxy-header"),
    }
}

/// Decodes `bytes`, and if they are a header, writes it anew in both versions and reads it back:
/// whatever can be received can be passed on.
pub fn round_trip(bytes: &[u8]) {
    let widest = Limits::v2_len(Limits::LARGEST).expect("the largest is allowed");
    let decoder = Decoder::new(widest);
    let Ok(Status::Complete { header, consumed }) = decoder.decode(bytes) else {
        return;
    };
    let subject = match header.endpoints {
        Endpoints::Tcp(addresses) => Subject::Client(addresses),
        Endpoints::Absent(_) => Subject::OwnAccount,
    };

    let line = encode_v1(subject).expect("every subject has a line");
    assert_says(&decoder, &line, Version::V1, subject);

    for checksum in [Checksum::Omit, Checksum::Compute] {
        match encode_v2(subject, header.tlvs.forwardable(), checksum) {
            Ok(written) => {
                assert!(written.len() <= Limits::LARGEST);
                let tlvs = assert_says(&decoder, &written, Version::V2, subject);
                // LOCAL is written with its TLVs, and read without.
                if let Subject::Client(_) = subject {
                    assert!(tlvs.forwardable().eq(header.tlvs.forwardable()));
                    assert_eq!(tlvs.crc32c().is_some(), checksum == Checksum::Compute);
                }
            }
            // A header that was full has no room for a checksum of its own.
            Err(error) => {
                assert_eq!(error, EncodeError::TlvsTooLong);
                assert!(
                    consumed > Limits::LARGEST - CHECKSUM_LEN,
                    "{consumed} are too many"
                );
            }
        }
    }
}

/// Checks that `bytes` are one whole header that says what `subject` does.
fn assert_says(decoder: &Decoder, bytes: &[u8], version: Version, subject: Subject) -> Tlvs {
    match decoder.decode(bytes) {
        Ok(Status::Complete { header, consumed }) => {
            assert_eq!(consumed, bytes.len());
            assert_eq!(header.version, version);
            match (subject, header.endpoints) {
                (Subject::Client(written), Endpoints::Tcp(read)) => assert_eq!(written, read),
                (Subject::OwnAccount, Endpoints::Absent(_)) => {}
                (written, read) => panic!("{written:?} was written, {read:?} read"),
            }
            header.tlvs
        }
        other => panic!("{bytes:?} was written, which is {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// Calls `check` with each file of a target's corpus, and says which one it was about.
    fn replay(target: &str, check: fn(&[u8])) {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(target);
        let entries: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap())
            .collect();
        assert!(
            entries.len() >= 10,
            "only {} files in {}",
            entries.len(),
            root.display()
        );
        for entry in entries {
            let path = entry.path();
            println!("{}", path.display());
            check(&fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_corpus_decodes_consistently() {
        replay("header_decode", super::decode);
    }

    #[test]
    fn the_corpus_survives_a_round_trip() {
        replay("header_roundtrip", super::round_trip);
    }
}
