//! A name server on loopback, by UDP and TCP, whose records a test changes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::Name;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{CNAME, SRV};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

use crate::lock::lock;
use crate::pool::resolve::{Resolver, Sources};

/// The server, and the files of a resolver that asks it.
pub(super) struct Dns {
    zone: Arc<Mutex<Zone>>,
    files: TempDir,
    port: u16,
    _tasks: [AbortOnDropHandle<io::Result<()>>; 2],
}

#[derive(Default)]
struct Zone {
    records: BTreeMap<Name, Vec<Record>>,
    /// Questions for these are answered with an error.
    failing: Vec<(Name, RecordType)>,
    /// Nothing is answered.
    silent: bool,
    asked: Vec<(Name, RecordType)>,
}

impl Dns {
    pub(super) async fn start() -> Self {
        let zone = Arc::<Mutex<Zone>>::default();
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let port = udp.local_addr().unwrap().port();
        let tasks = [
            tokio::spawn(serve_udp(udp, Arc::clone(&zone))),
            tokio::spawn(serve_tcp(tcp, Arc::clone(&zone))),
        ];
        let dns = Self {
            zone,
            files: tempfile::tempdir().unwrap(),
            port,
            _tasks: tasks.map(AbortOnDropHandle::new),
        };
        dns.resolv_conf("");
        dns.hosts("");
        dns
    }

    /// What follows the name server's line.
    pub(super) fn resolv_conf(&self, rest: &str) {
        let text = format!("nameserver 127.0.0.1\n{rest}");
        self.write("resolv.conf", &text);
    }

    pub(super) fn hosts(&self, text: &str) {
        self.write("hosts", text);
    }

    /// As container runtimes do it: in place, or another file under the name.
    fn write(&self, name: &str, text: &str) {
        let path = self.files.path().join(name);
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub(super) fn resolver(&self) -> Resolver {
        Resolver::new(Sources {
            resolv_conf: self.files.path().join("resolv.conf"),
            hosts: self.files.path().join("hosts"),
            port: self.port,
        })
    }

    /// Sets the records of a name.
    pub(super) fn set(&self, name: &str, ttl: u32, data: impl IntoIterator<Item = RData>) {
        let name = self::name(name);
        let record = |data| Record::from_rdata(name.clone(), ttl, data);
        let records = data.into_iter().map(record).collect();
        lock(&self.zone).records.insert(name, records);
    }

    pub(super) fn set_ips(&self, name: &str, ttl: u32, ips: &[&str]) {
        let ip = |ip: &&str| RData::from(ip.parse::<IpAddr>().unwrap());
        self.set(name, ttl, ips.iter().map(ip));
    }

    /// There is no such name any more.
    pub(super) fn remove(&self, name: &str) {
        lock(&self.zone).records.remove(&self::name(name));
    }

    /// Questions for these are answered with SERVFAIL; all others are not.
    pub(super) fn fail(&self, questions: &[(&str, RecordType)]) {
        let questions = questions.iter().map(|(n, kind)| (name(n), *kind));
        lock(&self.zone).failing = questions.collect();
    }

    pub(super) fn fall_silent(&self) {
        lock(&self.zone).silent = true;
    }

    /// Names that addresses of IPv4 were asked for of, or services, since the last time; in this order.
    pub(super) fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut lock(&self.zone).asked);
        let counts = |(_, kind): &(Name, RecordType)| *kind != RecordType::AAAA;
        let asked = asked.into_iter().filter(counts);
        asked.map(|(name, _)| name.to_string()).collect()
    }
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

pub(super) fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, name(target)))
}

pub(super) fn cname(target: &str) -> RData {
    RData::CNAME(CNAME(name(target)))
}

impl Zone {
    /// The answer, as long as it may be.
    fn answer(&mut self, request: &[u8]) -> Option<Message> {
        let request = Message::from_vec(request).ok()?;
        let query = request.query()?.clone();
        let (name, kind) = (query.name().clone(), query.query_type());
        self.asked.push((name.clone(), kind));
        if self.silent {
            return None;
        }
        let mut response = Message::new();
        response
            .set_id(request.id())
            .set_message_type(MessageType::Response)
            .set_recursion_available(true)
            .add_query(query);
        if self.failing.contains(&(name.clone(), kind)) {
            response.set_response_code(ResponseCode::ServFail);
            return Some(response);
        }
        let Some(mut records) = self.records.get(&name) else {
            response.set_response_code(ResponseCode::NXDomain);
            return Some(response);
        };
        // An alias comes with what it stands for, as a recursive server sends it.
        while let [alias] = &records[..]
            && let RData::CNAME(CNAME(target)) = alias.data()
        {
            response.add_answer(alias.clone());
            match self.records.get(target) {
                Some(there) => records = there,
                None => return Some(response),
            }
        }
        let fitting = records.iter().filter(|r| r.record_type() == kind);
        response.add_answers(fitting.cloned().collect::<Vec<_>>());
        Some(response)
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (len, peer): (usize, SocketAddr) = socket.recv_from(&mut buffer).await?;
        let Some(response) = lock(&zone).answer(&buffer[..len]) else {
            continue;
        };
        let mut bytes = response.to_vec().unwrap();
        if bytes.len() > 512 {
            // RFC 1035, section 4.2.1: the rest is to be asked for by TCP.
            bytes = response.truncate().to_vec().unwrap();
        }
        socket.send_to(&bytes, peer).await?;
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) -> io::Result<()> {
    async fn talk(mut stream: TcpStream, zone: Arc<Mutex<Zone>>) -> io::Result<()> {
        loop {
            let mut request = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut request).await?;
            let response = lock(&zone).answer(&request);
            if let Some(response) = response {
                let bytes = response.to_vec().unwrap();
                stream
                    .write_u16(u16::try_from(bytes.len()).unwrap())
                    .await?;
                stream.write_all(&bytes).await?;
            }
        }
    }
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(talk(stream, Arc::clone(&zone)));
    }
}
