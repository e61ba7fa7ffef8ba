//! clsact qdiscs and their filters: what `tc qdisc` and `tc filter` do, as far as limpid needs it.
//!
//! Synchronous, unlike the rest of [`super`]: the kernel has answered by the time `send` returns, and a
//! filter's program is named by a descriptor of the sending process.
//!
//! Filters of others are read with care: of theirs only the kind, the priority and the protocol count,
//! so no option that this code does not know can hide one.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::net::if_::if_indextoname;
use rtnetlink::packet_core::{
    Emitable as _, ErrorBuffer, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NlasIterator,
    Parseable as _, parse_string,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use thiserror::Error;

// Of linux/rtnetlink.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// "Every protocol" as a filter has it: in network byte order.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// A request that the kernel refused, or did not answer.
#[derive(Debug, Error)]
#[error("`tc {request}` failed: {source}")]
pub struct TcError {
    /// The request, as `tc` would spell it.
    request: String,
    /// What the kernel said.
    #[source]
    source: io::Error,
}

impl TcError {
    /// Is what was to be removed gone: the filter (ENOENT), its qdisc (EINVAL), or the interface?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let errno = self.source.raw_os_error();
        [libc::ENOENT, libc::EINVAL, libc::ENODEV]
            .map(Some)
            .contains(&errno)
    }
}

/// Where on an interface a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// On what arrives, before the IP stack.
    Ingress,
    /// On what leaves, after it.
    Egress,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// "ingress" or "egress".
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn parent(self) -> TcHandle {
        TcHandle {
            major: TcHandle::CLSACT.major,
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A filter of a clsact qdisc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Its priority (`pref`): lower ones run first.
    pub priority: u16,
    /// Its handle among those of that priority; 0 stands for the priority itself.
    pub handle: u32,
    /// "bpf", "flower", …
    pub kind: String,
    /// The name of a BPF filter.
    pub name: Option<String>,
    /// The id of a BPF filter's program.
    pub program: Option<u32>,
    /// Does it see every packet, whatever its protocol?
    pub all_protocols: bool,
}

impl Filter {
    /// Can a BPF filter for all protocols have the same priority? Others are refused by the kernel.
    #[must_use]
    pub fn shares_priority(&self) -> bool {
        self.kind == TcFilterBpf::KIND && self.all_protocols
    }
}

/// A netlink socket of this network namespace.
pub struct Tc {
    socket: Socket,
}

impl Tc {
    /// Opens the socket.
    pub fn open() -> Result<Self, TcError> {
        let open = || {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Self { socket })
        };
        open().map_err(|source| TcError {
            request: "(open)".to_owned(),
            source,
        })
    }

    /// The interfaces with a qdisc at the place of clsact, and its kind: "clsact", or "ingress", its
    /// predecessor without egress.
    pub fn qdiscs(&self) -> Result<Vec<(u32, String)>, TcError> {
        let get = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let found = self.request("qdisc show", get, NLM_F_DUMP)?;
        Ok(found
            .into_iter()
            .filter(|(header, _)| header.parent == TcHandle::CLSACT)
            .map(|(header, filter)| (header.index.cast_unsigned(), filter.kind))
            .collect())
    }

    /// Adds a clsact qdisc to an interface that has none.
    pub fn add_clsact(&self, ifindex: u32) -> Result<(), TcError> {
        self.request(
            &format!("qdisc add dev {} clsact", device(ifindex)),
            RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex)),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
    }

    /// Removes the clsact qdisc of an interface, with every filter in it.
    pub fn remove_clsact(&self, ifindex: u32) -> Result<(), TcError> {
        self.request(
            &format!("qdisc del dev {} clsact", device(ifindex)),
            RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex)),
            NLM_F_ACK,
        )
        .map(drop)
    }

    /// The filters at a hook, in the order in which they run. None, where there is no clsact.
    pub fn filters(&self, ifindex: u32, hook: Hook) -> Result<Vec<Filter>, TcError> {
        let found = self.request(
            &format!("filter show dev {} {hook}", device(ifindex)),
            RouteNetlinkMessage::GetTrafficFilter(filter_message(ifindex, hook, 0, 0)),
            NLM_F_DUMP,
        )?;
        Ok(found.into_iter().map(|(_, filter)| filter).collect())
    }

    /// Adds a BPF filter in direct-action mode, or replaces the program of the one with that `handle`
    /// without a gap.
    pub fn put_bpf(
        &self,
        ifindex: u32,
        hook: Hook,
        name: &str,
        program: BorrowedFd<'_>,
        priority: u16,
        handle: Option<u32>,
    ) -> Result<(), TcError> {
        let (verb, flags) = match handle {
            Some(_) => ("replace", NLM_F_ACK),
            None => ("add", NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL),
        };
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let mut message = filter_message(ifindex, hook, priority, handle.unwrap_or(0));
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
        ];
        self.request(
            &format!(
                "filter {verb} dev {} {hook} pref {priority} bpf",
                device(ifindex)
            ),
            RouteNetlinkMessage::NewTrafficFilter(message),
            flags,
        )
        .map(drop)
    }

    /// Removes one filter.
    pub fn remove(&self, ifindex: u32, hook: Hook, filter: &Filter) -> Result<(), TcError> {
        let Filter {
            priority, handle, ..
        } = *filter;
        self.request(
            &format!(
                "filter del dev {} {hook} pref {priority} handle {handle:#x}",
                device(ifindex)
            ),
            RouteNetlinkMessage::DelTrafficFilter(filter_message(ifindex, hook, priority, handle)),
            NLM_F_ACK,
        )
        .map(drop)
    }

    fn request(
        &self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<(TcHeader, Filter)>, TcError> {
        self.exchange(message, flags).map_err(|source| TcError {
            request: request.to_owned(),
            source,
        })
    }

    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<(TcHeader, Filter)>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut found = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkBuffer::new_checked(rest).map_err(unreadable)?;
                match answer.message_type() {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let error =
                            ErrorBuffer::new_checked(answer.payload()).map_err(unreadable)?;
                        return match error.code() {
                            None => Ok(found),
                            Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                        };
                    }
                    _ => found.push(read(answer.payload()).map_err(unreadable)?),
                }
                let length = (answer.length() as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// An interface as `tc` names it, or its index where it is gone.
#[must_use]
pub fn device(ifindex: u32) -> String {
    if_indextoname(ifindex).map_or_else(
        |_| format!("(index {ifindex})"),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    message
}

fn filter_message(ifindex: u32, hook: Hook, priority: u16, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = hook.parent();
    message.header.handle = handle.into();
    if priority != 0 {
        message.header.info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS);
    }
    message
}

/// A `tcmsg` of the kernel: a filter, or a qdisc, of which only the kind counts.
fn read(payload: &[u8]) -> Result<(TcHeader, Filter), rtnetlink::packet_core::DecodeError> {
    let header = TcHeader::parse(payload)?;
    let mut filter = Filter {
        priority: (header.info >> 16) as u16,
        handle: header.handle.into(),
        kind: String::new(),
        name: None,
        program: None,
        all_protocols: header.info as u16 == ALL_PROTOCOLS,
    };
    for attribute in NlasIterator::new(&payload[header.buffer_len()..]) {
        let attribute = attribute?;
        match attribute.kind() {
            TCA_KIND => filter.kind = parse_string(attribute.value())?,
            TCA_OPTIONS if filter.kind == TcFilterBpf::KIND => {
                for option in NlasIterator::new(attribute.value()) {
                    match TcFilterBpfOption::parse(&option?)? {
                        TcFilterBpfOption::ProgName(name) => filter.name = Some(name),
                        TcFilterBpfOption::ProgId(id) => filter.program = Some(id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok((header, filter))
}

fn unreadable(error: rtnetlink::packet_core::DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
