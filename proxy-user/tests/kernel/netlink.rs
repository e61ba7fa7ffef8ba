//! `proxy_user::netlink`: what it says of a host's interfaces.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::Host;
use limpid_tests::suite::{Need, Suite};
use proxy_user::netlink::{Interface, LinkHeader, Netlink};

pub(crate) fn add_to(suite: &mut Suite) {
    suite.test("interfaces_with_addresses", &[Need::Tun], |_| addressed());
    suite.test("no_interfaces_with_addresses", &[], |_| unaddressed());
    suite.test("mtu_and_state", &[], |_| mtu_and_state());
}

/// Those with a global address, and none but the global addresses of theirs.
async fn addressed() -> Result<()> {
    let host = Host::new("host")?;
    for line in [
        "link add both type veth peer name local",
        "link set both up",
        "link set local up",
        "addr add 192.0.2.1/24 dev both",
        "addr add 192.0.2.2/24 dev both",
        "addr add 2001:db8::1/64 dev both nodad",
        "addr add 169.254.1.1/16 dev both",
        "addr add fe80::1/64 dev both nodad",
        // Nothing but addresses of the link: not listed.
        "addr add 169.254.1.2/16 dev local",
        "addr add 198.51.100.7/24 dev local scope link",
        "addr add fe80::2/64 dev local nodad",
        // A loopback interface may have any.
        "addr add 203.0.113.1/32 dev lo",
        // Unique-local, on an interface without link headers whose other end has an address too.
        "tuntap add dev tunnel mode tun",
        "addr add fd00::1 peer fd00::2 dev tunnel nodad",
        "addr add 10.0.0.1 peer 10.0.0.2 dev tunnel",
        // Switched off, but with an address.
        "link add off type bridge",
        "addr add 10.9.0.1/24 dev off",
    ] {
        host.ip(line)?;
    }
    let found = interfaces(&host).await?;
    let seen: Vec<_> = found
        .iter()
        .map(|(interface, addresses)| (interface.name.as_str(), sorted(addresses)))
        .collect();
    let expected = [
        (
            "both",
            sorted(&ips(&["192.0.2.1", "192.0.2.2", "2001:db8::1"])?),
        ),
        ("tunnel", sorted(&ips(&["10.0.0.1", "fd00::1"])?)),
        ("off", sorted(&ips(&["10.9.0.1"])?)),
    ];
    ensure!(seen == expected, "{seen:?}");
    let [(both, _), (tunnel, _), (off, _)] = &found[..] else {
        unreachable!("compared above")
    };
    ensure!(both.header == LinkHeader::Ethernet && both.up && !both.bridge);
    ensure!(tunnel.header == LinkHeader::None);
    ensure!(off.bridge && !off.up);
    Ok(())
}

async fn unaddressed() -> Result<()> {
    let host = Host::new("host")?;
    let found = interfaces(&host).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// Both are as they were last set.
async fn mtu_and_state() -> Result<()> {
    let host = Host::new("host")?;
    host.ip("link add near mtu 1400 type veth peer name far")?;
    let netlink = open(&host).await?;
    let near = netlink.interface("near").await?;
    ensure!((near.mtu, near.up) == (1400, false), "{near:?}");
    host.ip("link set near mtu 9000 up")?;
    let near = netlink.interface("near").await?;
    // Up, though there is no carrier as long as the other end is down.
    ensure!((near.mtu, near.up) == (9000, true), "{near:?}");
    Ok(())
}

async fn open(host: &Host) -> Result<Netlink> {
    let opened = host.spawn(async { Netlink::open() }).await?;
    opened.context("netlink")
}

async fn interfaces(host: &Host) -> Result<Vec<(Interface, Vec<IpAddr>)>> {
    Ok(open(host).await?.interfaces_with_addresses().await?)
}

fn ips(texts: &[&str]) -> Result<Vec<IpAddr>> {
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

fn sorted(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort();
    sorted
}
