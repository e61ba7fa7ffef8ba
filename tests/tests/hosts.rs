//! Hosts as they are found: firewalls, reverse path filters, Docker. limpid works on them, and
//! changes nothing of theirs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::firewall;
use limpid_tests::header::Version;
use limpid_tests::host_state::{HostState, ensure_unchanged};
use limpid_tests::net::{Family, LinkKind, Plan, Topology};
use limpid_tests::programs::{Engine, Limpid, Options};
use limpid_tests::scene::{LISTEN, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled};
use limpid_tests::transfer::{self, Flow};
use tokio::time::timeout;

const IPTABLES: Need = Need::Program("/usr/sbin/iptables");

/// Netfilter on bridges (`br_netfilter`), which Docker turns on.
const BRIDGE_NETFILTER: Need = Need::File("/proc/sys/net/bridge/bridge-nf-call-iptables");

const BTF: Need = Need::File("/sys/kernel/btf/vmlinux");

/// Starts a program that does not see the kernel's BTF.
const WITHOUT_BTF: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"",
];

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for engine in Engine::ALL {
            for forward in [false, true] {
                let name = if forward {
                    "forwarding"
                } else {
                    "not_forwarding"
                };
                suite.test(
                    format!("strict_{name}_{family}_{engine}"),
                    &[IPTABLES],
                    move |lab| strict(lab, forward, family, engine),
                );
            }
            suite.test(
                format!("docker_{family}_{engine}"),
                &[IPTABLES],
                move |lab| docker(lab, family, engine),
            );
        }
        suite.test(
            format!("strict_docker_bridge_{family}"),
            &[IPTABLES, BRIDGE_NETFILTER],
            move |lab| strict_bridge(lab, family),
        );
        suite.test(format!("path_mtu_is_learned_{family}"), &[], move |lab| {
            path_mtu_is_learned(lab, family)
        });
        suite.test(format!("mounts_its_bpffs_{family}"), &[], move |lab| {
            mounts_its_bpffs(lab, family)
        });
        suite.test(format!("no_btf_{family}"), &[BTF], move |lab| {
            no_btf(lab, family)
        });
    }
    suite.test("no_btf_sockmap", &[BTF], |lab| async move {
        no_btf_sockmap(&lab)
    });
    suite.run()
}

/// INPUT policy DROP, conntrack's INVALID dropped, ESTABLISHED accepted; strict reverse path filter.
async fn strict(lab: Lab, forward: bool, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    for interface in ["all", "default", "transit", "inside"] {
        net.proxy
            .sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
    }
    if forward {
        net.enable_forwarding()?;
    }
    firewall::strict_input(&net.proxy, LISTEN)?;
    works_and_changes_nothing(net, &lab, family, engine).await
}

/// Backends on Docker's bridge, with Docker's rules, and its masquerading.
async fn docker(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::build(&Plan {
        inside: LinkKind::Bridge,
        ..Plan::default()
    })?;
    net.enable_forwarding()?;
    firewall::docker(&net.proxy, "inside")?;
    works_and_changes_nothing(net, &lab, family, engine).await
}

/// Both at once, where netfilter looks at bridged packets too: it sees a reply at the bridge's port,
/// before the bridge itself does.
async fn strict_bridge(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::build(&Plan {
        inside: LinkKind::Bridge,
        ..Plan::default()
    })?;
    for table in ["iptables", "ip6tables"] {
        net.proxy
            .sysctl(&format!("net/bridge/bridge-nf-call-{table}"), "1")?;
    }
    firewall::docker(&net.proxy, "inside")?;
    firewall::strict_input(&net.proxy, LISTEN)?;
    works_and_changes_nothing(net, &lab, family, Engine::Copy).await
}

/// "Fragmentation needed" and "packet too big" of a router are addressed to the client, and must find
/// limpid's socket, or large packets vanish for ever.
async fn path_mtu_is_learned(lab: Lab, family: Family) -> Result<()> {
    let plan = Plan {
        router_mtu: Some(1300),
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| options).await?;
    let client = scene.new_client();
    let mut pair = scene.open_as(Version::V2, client).await?;
    ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
    let (up, down) = (Flow::new(1_000_000, 1), Flow::new(1_000_000, 2));
    timeout(
        scaled(Duration::from_secs(20)),
        transfer::exchange(&mut pair.client, &mut pair.server, up, down),
    )
    .await
    .context("large packets are lost")?
}

/// Where no bpffs is, as under `ip netns exec`, limpid mounts one; here, in a mount namespace that
/// ends with it.
async fn mounts_its_bpffs(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let scene = Scene::on(net, &lab, family, |options| {
        options
            .accept_proxy(family.everything())
            .without_bpffs()
            .under(&["unshare", "--mount"])
    })
    .await?;
    let client = scene.new_client();
    let pair = scene.open_as(Version::V2, client).await?;
    ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", scene.limpid.pid()))?;
    let folder = lab.path().display().to_string();
    ensure!(
        mounts
            .lines()
            .any(|line| line.contains(&folder) && line.contains(" bpf ")),
        "no bpffs:\n{mounts}"
    );
    Ok(())
}

async fn works_and_changes_nothing(
    net: Topology,
    lab: &Lab,
    family: Family,
    engine: Engine,
) -> Result<()> {
    let before = HostState::configuration(&net.proxy)?;
    let scene = Scene::on(net, lab, family, |options| {
        options.accept_proxy(family.everything()).engine(engine)
    })
    .await?;
    for version in Version::ALL {
        let client = scene.new_client();
        let mut pair = scene.open_as(version, client).await?;
        ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
        ensure_unchanged(&before, &HostState::configuration(&scene.net.proxy)?)?;
        scene.wait_for_engine(engine).await?;
        let (up, down) = (Flow::new(500_000, 1), Flow::new(500_000, 2));
        transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    }
    scene.records_of(2, engine).await?;
    ensure_unchanged(&before, &HostState::configuration(&scene.net.proxy)?)
}

/// A kernel that tells nothing of its structures. What needs no more than the stable interface does not
/// mind.
async fn no_btf(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(Engine::Packet).under(&WITHOUT_BTF)
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    let (up, down) = (Flow::new(300_000, 1), Flow::new(300_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    drop(pair);
    scene.record_of(Engine::Packet).await.map(drop)
}

/// The engine that reads structures is refused to who asks for it by name, and says what it lacks.
fn no_btf_sockmap(lab: &Lab) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(Family::V4, LISTEN);
    let options = Options::new(listen, net.backend_addr(Family::V4, UPSTREAM));
    let options = options.accept_proxy("0.0.0.0/0").engine(Engine::Sockmap);
    let mut limpid = Limpid::spawn(&net.proxy, lab, &options.under(&WITHOUT_BTF))?;
    let status = limpid.process().wait(scaled(Duration::from_secs(20)))?;
    let log = limpid.log()?;
    ensure!(
        !status.success() && log.contains("--splice sockmap: "),
        "{log}"
    );
    ensure!(log.contains("/sys/kernel/btf/vmlinux"), "{log}");
    ensure!(limpid.pinned()?.is_empty(), "left: {:?}", limpid.pinned()?);
    Ok(())
}
