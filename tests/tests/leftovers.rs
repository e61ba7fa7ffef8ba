//! What limpid adds to a host, and what becomes of it: among other people's qdiscs, filters and files,
//! after a kill, in private mount namespaces, and when it is taken away under a running daemon.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::host_state::{HostState, ensure_unchanged};
use limpid_tests::net::{Family, Host, Topology};
use limpid_tests::process::{PATIENCE, eventually};
use limpid_tests::programs::{Limpid, Options, run, show};
use limpid_tests::scene::{LISTEN, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled};
use limpid_tests::transfer;
use tokio::io::AsyncWriteExt;

const PROMPT: Duration = Duration::from_secs(5);

/// The interface that limpid steers on.
const DEVICE: &str = "inside";

/// Its other end, on the backend.
const FAR: &str = "eth0";

/// A program of one instruction that matches nothing, and so lets every packet by.
const NOTHING: &str = "bpf bytecode 1,6\u{a0}0\u{a0}0\u{a0}0";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.test("foreign_filter_in_a_new_clsact", &[], |lab| async move {
        foreign_filter_in_a_new_clsact(&lab).await
    });
    suite.test("clsact_gone_at_the_end", &[], clsact_gone_at_the_end);
    suite.test("clsact_gone_at_cleanup", &[], clsact_gone_at_cleanup);
    suite.test("killed_with_a_private_bpffs", &[], private_bpffs);
    suite.test(
        "cleanup_beside_a_private_bpffs",
        &[],
        beside_a_private_bpffs,
    );
    suite.test("legacy_ingress", &[], legacy_ingress);
    for hook in ["ingress", "egress"] {
        suite.test(format!("priority_taken_{hook}"), &[], move |lab| {
            priority_taken(lab, hook)
        });
    }
    suite.test("first_at_ingress", &[], first_at_ingress);
    suite.test("two_instances_by_clsact", &[], two_instances);
    suite.test("from_clsact_to_tcx", &[Need::Kernel(6, 6)], |lab| {
        change_of_mode(lab, "clsact", "tcx")
    });
    suite.test("from_tcx_to_clsact", &[Need::Kernel(6, 6)], |lab| {
        change_of_mode(lab, "tcx", "clsact")
    });
    for (attach, needs) in [("tcx", &[Need::Kernel(6, 6)][..]), ("clsact", &[])] {
        for (name, loss) in [("removed", Loss::Removed), ("made_again", Loss::MadeAgain)] {
            suite.test(format!("steering_{name}_{attach}"), needs, move |lab| {
                steering_lost(lab, attach, loss)
            });
        }
    }
    suite.test(
        "files_in_a_folder_that_is_no_bpffs",
        &[],
        |lab| async move { no_bpffs(&lab) },
    );
    suite.test("strangers_among_the_pins", &[], strangers);
    suite.test("own_mount_goes", &[], own_mount_goes);
    suite.run()
}

async fn clsact_scene(lab: &Lab) -> Result<Scene> {
    scene(Topology::standard()?, lab, clsact).await
}

/// A scene whose daemon has attached.
async fn scene(
    net: Topology,
    lab: &Lab,
    options: impl FnOnce(Options) -> Options,
) -> Result<Scene> {
    let scene = Scene::on(net, lab, Family::V4, options).await?;
    scene.limpid.wait_for_log("\"ready\"").await?;
    Ok(scene)
}

/// Another daemon in the place of the scene's, which has ended.
async fn restart(
    scene: &Scene,
    lab: &Lab,
    options: impl FnOnce(Options) -> Options,
) -> Result<Limpid> {
    let plain = Options::new(
        scene.net.proxy_addr(Family::V4, LISTEN),
        scene.net.backend_addr(Family::V4, UPSTREAM),
    );
    let limpid = Limpid::start(&scene.net.proxy, lab, &options(plain))?;
    // Both write to the same log.
    eventually("the second daemon is ready", || {
        Ok(limpid.log()?.matches("\"ready\"").count() == 2)
    })
    .await?;
    Ok(limpid)
}

fn clsact(options: Options) -> Options {
    options.accept_proxy("0.0.0.0/0").with("--attach=clsact")
}

/// `tc` with a line of arguments; a no-break space stands for a space inside of one.
fn tc(host: &Host, line: &str) -> Result<String> {
    let words: Vec<String> = line.split(' ').map(|w| w.replace('\u{a0}', " ")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.run("tc", &words)
}

fn filters(host: &Host) -> Result<String> {
    let shown =
        ["ingress", "egress"].map(|hook| tc(host, &format!("filter show dev {DEVICE} {hook}")));
    let [ingress, egress] = shown;
    Ok(ingress? + &egress?)
}

/// Bytes go both ways, and the backend sees the client.
async fn steers(scene: &Scene) -> Result<()> {
    let mut pair = scene.open().await?;
    pair.client.write_all(b"there").await?;
    transfer::expect_bytes(&mut pair.server, b"there").await?;
    pair.server.write_all(b"back").await?;
    transfer::expect_bytes(&mut pair.client, b"back").await?;
    ensure!(
        pair.peer.ip() == scene.net.elsewhere(Family::V4, 77),
        "the backend sees {}",
        pair.peer
    );
    Ok(())
}

/// Somebody makes the qdisc again and has a filter in it where limpid's was: both are theirs.
async fn foreign_filter_in_a_new_clsact(lab: &Lab) -> Result<()> {
    let mut scene = clsact_scene(lab).await?;
    let proxy = &scene.net.proxy;
    ensure!(filters(proxy)?.contains("limpid/"), "{}", filters(proxy)?);
    scene.limpid.kill()?;
    tc(proxy, &format!("qdisc del dev {DEVICE} clsact"))?;
    tc(proxy, &format!("qdisc add dev {DEVICE} clsact"))?;
    for hook in ["ingress prio 1", "egress prio 49152"] {
        tc(
            proxy,
            &format!("filter add dev {DEVICE} {hook} handle 1 {NOTHING}"),
        )?;
    }
    let qdiscs = format!("qdisc show dev {DEVICE}");
    let before = (filters(proxy)?, tc(proxy, &qdiscs)?);
    scene.limpid.cleanup(proxy)?;
    let after = (filters(proxy)?, tc(proxy, &qdiscs)?);
    ensure!(before == after, "{before:?} became {after:?}");
    ensure!(scene.limpid.pinned()?.is_empty(), "pins are left");
    Ok(())
}

/// The qdisc is deleted under a running daemon: it ends as if it had removed it itself.
async fn clsact_gone_at_the_end(lab: Lab) -> Result<()> {
    let mut scene = clsact_scene(&lab).await?;
    tc(&scene.net.proxy, &format!("qdisc del dev {DEVICE} clsact"))?;
    let status = scene.limpid.terminate(scaled(PROMPT))?;
    ensure!(status.success(), "{status}");
    ensure!(scene.limpid.pinned()?.is_empty(), "pins are left");
    Ok(())
}

async fn clsact_gone_at_cleanup(lab: Lab) -> Result<()> {
    let mut scene = clsact_scene(&lab).await?;
    scene.limpid.kill()?;
    tc(&scene.net.proxy, &format!("qdisc del dev {DEVICE} clsact"))?;
    scene.limpid.cleanup(&scene.net.proxy)?;
    ensure!(scene.limpid.pinned()?.is_empty(), "pins are left");
    Ok(())
}

/// As `ip netns exec` has it: the bpffs goes with the daemon, its filters do not. The next one takes them
/// over, and the clean-up finds them.
async fn private_bpffs(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let before = HostState::with_filters(&net.proxy)?;
    let private = |options| {
        clsact(options)
            .without_bpffs()
            .under(&["/usr/bin/unshare", "--mount"])
    };
    let mut scene = scene(net, &lab, private).await?;
    steers(&scene).await?;
    scene.limpid.kill()?;
    ensure!(
        scene.limpid.pinned()?.is_empty(),
        "the bpffs is not private"
    );
    let left = filters(&scene.net.proxy)?;
    ensure!(left.matches("limpid/").count() == 2, "{left}");

    let mut again = restart(&scene, &lab, private).await?;
    let left = filters(&scene.net.proxy)?;
    ensure!(left.matches("limpid/").count() == 2, "{left}");
    steers(&scene).await?;
    again.kill()?;

    let removed = again.cleanup(&scene.net.proxy)?;
    ensure!(removed.contains("qdisc clsact"), "{removed}");
    ensure_unchanged(&before, &HostState::with_filters(&scene.net.proxy)?)
}

/// A clean-up that does not see the daemon's bpffs does not take its filters away.
async fn beside_a_private_bpffs(lab: Lab) -> Result<()> {
    let private = |options| {
        clsact(options)
            .without_bpffs()
            .under(&["/usr/bin/unshare", "--mount"])
    };
    let scene = scene(Topology::standard()?, &lab, private).await?;
    let instance = scene.limpid.pins();
    let instance = instance
        .file_name()
        .context("no name")?
        .to_string_lossy()
        .into_owned();
    let args = ["cleanup".to_owned(), format!("--instance={instance}")];
    let output = run(&scene.net.proxy, &args)?;
    ensure!(!output.status.success(), "{}", show(&output));
    ensure!(show(&output).contains("running"), "{}", show(&output));
    steers(&scene).await
}

/// clsact's predecessor in its place: TCX does not mind, clsact says what is wrong.
async fn legacy_ingress(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    tc(&net.proxy, &format!("qdisc add dev {DEVICE} ingress"))?;
    let before = HostState::with_filters(&net.proxy)?;
    let options = clsact(Options::new(
        net.proxy_addr(Family::V4, LISTEN),
        net.backend_addr(Family::V4, UPSTREAM),
    ));
    let mut limpid = Limpid::spawn(&net.proxy, &lab, &options)?;
    let status = limpid.process().wait(PATIENCE)?;
    let log = limpid.log()?;
    ensure!(!status.success(), "{log}");
    for word in [DEVICE, "ingress", "--attach tcx"] {
        ensure!(log.contains(word), "{word:?} is missing: {log}");
    }
    ensure!(limpid.pinned()?.is_empty(), "pins are left");
    ensure_unchanged(&before, &HostState::with_filters(&net.proxy)?)
}

/// A filter of another kind at the very priority, as `tc` itself numbers them at egress.
async fn priority_taken(lab: Lab, hook: &str) -> Result<()> {
    let net = Topology::standard()?;
    tc(&net.proxy, &format!("qdisc add dev {DEVICE} clsact"))?;
    let priority = if hook == "ingress" { " prio 1" } else { "" };
    tc(
        &net.proxy,
        &format!("filter add dev {DEVICE} {hook}{priority} protocol ip {NOTHING}"),
    )?;
    let before = filters(&net.proxy)?;
    let mut scene = scene(net, &lab, clsact).await?;
    steers(&scene).await?;
    let status = scene.limpid.terminate(scaled(PROMPT))?;
    ensure!(status.success(), "{status}");
    ensure!(filters(&scene.net.proxy)? == before, "{before}");
    Ok(())
}

/// Another's program, with the lowest number that there is, which ends the search for every packet.
async fn first_at_ingress(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    tc(&net.proxy, &format!("qdisc add dev {DEVICE} clsact"))?;
    let accept = NOTHING.replace("bpf", "bpf direct-action");
    tc(
        &net.proxy,
        &format!("filter add dev {DEVICE} ingress prio 1 {accept}"),
    )?;
    let scene = scene(net, &lab, clsact).await?;
    steers(&scene).await
}

/// Each removes its own.
async fn two_instances(lab: Lab) -> Result<()> {
    let mut scene = clsact_scene(&lab).await?;
    let options = clsact(Options::new(
        scene.net.proxy_addr(Family::V4, LISTEN + 1),
        scene.net.backend_addr(Family::V4, UPSTREAM),
    ));
    let mut other = Limpid::start_as("other", &scene.net.proxy, &lab, &options)?;
    other.wait_for_log("\"ready\"").await?;
    let both = filters(&scene.net.proxy)?;
    ensure!(both.matches("limpid/").count() == 4, "{both}");
    steers(&scene).await?;
    ensure!(
        other.terminate(scaled(PROMPT))?.success(),
        "{}",
        other.log()?
    );
    let one = filters(&scene.net.proxy)?;
    ensure!(one.matches("limpid/").count() == 2, "{one}");
    steers(&scene).await?;
    ensure!(
        scene.limpid.terminate(scaled(PROMPT))?.success(),
        "the first"
    );
    let qdiscs = tc(&scene.net.proxy, "qdisc show")?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    Ok(())
}

/// A daemon that attaches the other way than the killed one removes what that one had.
async fn change_of_mode(lab: Lab, first: &str, second: &str) -> Result<()> {
    let net = Topology::standard()?;
    let before = HostState::with_filters(&net.proxy)?;
    let mode = |options: Options, mode: &str| {
        options
            .accept_proxy("0.0.0.0/0")
            .with(format!("--attach={mode}"))
    };
    let mut scene = scene(net, &lab, |o| mode(o, first)).await?;
    scene.limpid.kill()?;
    let mut again = restart(&scene, &lab, |options| mode(options, second)).await?;
    let links = std::fs::read_dir(again.pins().join("links"))?.count();
    let shown = filters(&scene.net.proxy)?;
    let found = (links, shown.matches("limpid/").count());
    // A link for each hook of both interfaces; the filters of one of them.
    let expected = if second == "tcx" { (4, 0) } else { (0, 2) };
    ensure!(found == expected, "links and filters: {found:?}\n{shown}");
    steers(&scene).await?;
    ensure!(again.terminate(scaled(PROMPT))?.success(), "its end");
    ensure_unchanged(&before, &HostState::with_filters(&scene.net.proxy)?)
}

/// How programs get lost under a running daemon.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Somebody removes them.
    Removed,
    /// The interface is made again, with the index and the name of the old one.
    MadeAgain,
}

/// The daemon notices, and attaches again.
async fn steering_lost(lab: Lab, attach: &'static str, loss: Loss) -> Result<()> {
    let options = move |options: Options| {
        options
            .accept_proxy("0.0.0.0/0")
            .with(format!("--attach={attach}"))
    };
    let mut scene = scene(Topology::standard()?, &lab, options).await?;
    steers(&scene).await?;
    let proxy = &scene.net.proxy;
    match (loss, attach) {
        (Loss::Removed, "clsact") => {
            for hook in ["ingress", "egress"] {
                tc(proxy, &format!("filter del dev {DEVICE} {hook}"))?;
            }
        }
        // A TCX link ends with its last pin.
        (Loss::Removed, _) => {
            for link in std::fs::read_dir(scene.limpid.pins().join("links"))? {
                std::fs::remove_file(link?.path())?;
            }
        }
        (Loss::MadeAgain, _) => make_again(&scene.net)?,
    }
    // Any change is a reason to look; without one it takes a few seconds more.
    proxy.ip("link set lo mtu 60000")?;
    eventually("it is attached again", || {
        let log = scene.limpid.log()?;
        let attached = log.lines().filter(|line| {
            line.contains("steering attached") && line.contains(&format!("\"{DEVICE}\""))
        });
        Ok(attached.count() == 2)
    })
    .await?;
    steers(&scene).await?;
    ensure!(scene.limpid.terminate(scaled(PROMPT))?.success(), "its end");
    ensure!(scene.limpid.pinned()?.is_empty(), "pins are left");
    Ok(())
}

/// A new cable in the place of the old one, at once.
fn make_again(net: &Topology) -> Result<()> {
    let shown = net.proxy.sh(&format!("ip -o link show dev {DEVICE}"))?;
    let (index, _) = shown.split_once(':').context(shown.clone())?;
    let (near, far) = (
        net.proxy_inside_ip(Family::V4),
        net.backend_addr(Family::V4, 0).ip(),
    );
    let script = format!(
        "ip link del {DEVICE} && \
         ip link add {DEVICE} index {index} type veth peer name {FAR} netns {} && \
         ip link set {DEVICE} up && \
         ip addr add {near}/24 dev {DEVICE}",
        net.backend.namespace().display()
    );
    net.proxy.run("sh", &["-c", &script])?;
    net.backend.ip(&format!("link set {FAR} up"))?;
    net.backend.ip(&format!("addr add {far}/24 dev {FAR}"))?;
    net.backend.ip(&format!("route add default via {near}"))
}

/// A folder of that name that holds somebody's files.
fn no_bpffs(lab: &Lab) -> Result<()> {
    let host = Host::new("alone")?;
    let folder = lab.path().join("limpid/default");
    std::fs::create_dir_all(folder.join("links"))?;
    let files = ["flows", "notes.txt", "links/1-ingress"].map(|file| folder.join(file));
    for file in &files {
        std::fs::write(file, "somebody's")?;
    }
    let output = run(
        &host,
        &["cleanup", &format!("--bpffs={}", lab.path().display())],
    )?;
    ensure!(!output.status.success(), "{}", show(&output));
    ensure!(show(&output).contains("--bpffs"), "{}", show(&output));
    for file in &files {
        ensure!(file.exists(), "{} is gone", file.display());
    }
    Ok(())
}

/// Pins of others in the instance's folder stay, and are named.
async fn strangers(lab: Lab) -> Result<()> {
    let mut scene = clsact_scene(&lab).await?;
    let flows = scene.limpid.pins().join("flows");
    let stranger = scene.limpid.pins().join("somebodys");
    let flows = flows.display().to_string();
    let pin = stranger.display().to_string();
    scene
        .net
        .proxy
        .run("bpftool", &["map", "pin", "pinned", &flows, &pin])?;
    scene.limpid.kill()?;
    let said = scene.limpid.cleanup(&scene.net.proxy)?;
    ensure!(said.contains("somebodys"), "{said}");
    ensure!(stranger.exists(), "the stranger is gone");
    let left: Vec<_> = std::fs::read_dir(scene.limpid.pins())?.collect::<Result<_, _>>()?;
    ensure!(left.len() == 1, "{left:?}");
    Ok(())
}

/// A BPF file system that limpid had to mount is unmounted at the end.
async fn own_mount_goes(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let folder = lab.path().display().to_string();
    // Other tests mount at the same time.
    let mounts = || -> Result<Vec<String>> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
        let own = mounts.lines().filter(|line| line.contains(&folder));
        Ok(own.map(str::to_owned).collect())
    };
    let before = mounts()?;
    let bare = |options| clsact(options).without_bpffs();
    let mut scene = scene(net, &lab, bare).await?;
    ensure!(mounts()? != before, "nothing was mounted");
    ensure!(scene.limpid.terminate(scaled(PROMPT))?.success(), "its end");
    ensure!(mounts()? == before, "mounted: {:?}", mounts()?);
    Ok(())
}
