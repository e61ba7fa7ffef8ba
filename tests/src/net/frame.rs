//! A TCP segment in a frame: taken apart, changed, put together with right checksums.

use etherparse::{IpHeaders, IpNumber, TcpHeader};

/// Option kinds of RFC 9293, section 3.2.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// The direction-specific identity of a segment's stream: both addresses and both ports.
pub(super) type StreamKey = (Vec<u8>, u16, u16);

/// A frame that holds a whole TCP segment.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    link: Vec<u8>,
    ip: IpHeaders,
    pub(super) tcp: TcpHeader,
    pub(super) payload: Vec<u8>,
}

impl Segment {
    /// Reads a frame whose IP header starts at `offset`; `None` for all that is not a TCP segment.
    pub(super) fn parse(frame: &[u8], offset: usize) -> Option<Self> {
        let (link, packet) = frame.split_at_checked(offset)?;
        let (ip, body) = IpHeaders::from_slice(packet).ok()?;
        if body.ip_number != IpNumber::TCP || body.fragmented {
            return None;
        }
        let (tcp, payload) = TcpHeader::from_slice(body.payload).ok()?;
        Some(Self {
            link: link.to_vec(),
            ip,
            tcp,
            payload: payload.to_vec(),
        })
    }

    /// Writes it as a frame again. `None` where the lengths do not fit their fields.
    pub(super) fn to_frame(&self) -> Option<Vec<u8>> {
        let (mut ip, mut tcp) = (self.ip.clone(), self.tcp.clone());
        ip.set_payload_len(tcp.header_len() + self.payload.len())
            .ok()?;
        tcp.checksum = match &ip {
            IpHeaders::Ipv4(header, _) => tcp.calc_checksum_ipv4(header, &self.payload).ok()?,
            IpHeaders::Ipv6(header, _) => tcp.calc_checksum_ipv6(header, &self.payload).ok()?,
        };
        let mut frame = self.link.clone();
        ip.write(&mut frame).ok()?;
        tcp.write(&mut frame).ok()?;
        frame.extend_from_slice(&self.payload);
        Some(frame)
    }

    /// Length from the IP header on.
    pub(super) fn packet_len(&self) -> usize {
        self.ip.header_len() + self.tcp.header_len() + self.payload.len()
    }

    pub(super) fn key(&self) -> StreamKey {
        let addresses = match &self.ip {
            IpHeaders::Ipv4(header, _) => [header.source, header.destination].concat(),
            IpHeaders::Ipv6(header, _) => [header.source, header.destination].concat(),
        };
        (addresses, self.tcp.source_port, self.tcp.destination_port)
    }

    /// The sequence number of the byte after its payload.
    pub(super) fn end_of_payload(&self) -> u32 {
        self.tcp
            .sequence_number
            .wrapping_add(u32::try_from(self.payload.len()).unwrap_or(u32::MAX))
    }

    /// Lowers the MSS option to `limit`; false where there is none above it.
    pub(super) fn clamp_mss(&mut self, limit: u16) -> bool {
        let mut options = self.tcp.options.as_slice().to_vec();
        let mut at = 0;
        while let Some(&kind) = options.get(at) {
            match kind {
                END_OF_OPTIONS => return false,
                NO_OPERATION => at += 1,
                MAXIMUM_SEGMENT_SIZE => {
                    let Some(value) = options.get_mut(at + 2..at + 4) else {
                        return false;
                    };
                    if u16::from_be_bytes([value[0], value[1]]) <= limit {
                        return false;
                    }
                    value.copy_from_slice(&limit.to_be_bytes());
                    return self.tcp.set_options_raw(&options).is_ok();
                }
                _ => match options.get(at + 1) {
                    Some(&length) if length >= 2 => at += usize::from(length),
                    _ => return false,
                },
            }
        }
        false
    }
}
