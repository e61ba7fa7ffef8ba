//! What a host's administrator owns: rules, routes, addresses, settings, filters. limpid must leave
//! all of it as it was.

use std::time::{Duration, Instant};
use std::{fmt, thread};

use anyhow::Result;

use crate::net::Host;
use crate::process::GLANCE;
use crate::suite::scaled;

/// A picture of a host's network set-up, as its own tools print it.
#[derive(Clone, PartialEq, Eq)]
pub struct HostState(Vec<(String, String)>);

/// What is there while limpid runs too: all but its own filters.
const CONFIGURATION: &[&str] = &[
    // Stateless: counters count, whatever we do.
    "nft --stateless list ruleset",
    "ip -4 rule show",
    "ip -6 rule show",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip -o addr show",
    "sysctl -a --pattern ^net\\.ipv[46]\\.(conf|ip_)",
];

/// What must be as before only once limpid is gone.
const FILTERS: &[&str] = &["tc qdisc show", "bpftool net show"];

impl HostState {
    /// Rules, routes, addresses and settings.
    pub fn configuration(host: &Host) -> Result<Self> {
        Self::take(host, CONFIGURATION)
    }

    /// The above, and qdiscs and BPF programs on interfaces.
    pub fn with_filters(host: &Host) -> Result<Self> {
        Self::take(host, &[CONFIGURATION, FILTERS].concat())
    }

    fn take(host: &Host, commands: &[&str]) -> Result<Self> {
        wait_for_addresses(host)?;
        let mut taken = Vec::new();
        for command in commands {
            let printed = host.sh(command)?;
            // Timers are not set-up.
            let lines: Vec<&str> = printed
                .lines()
                .filter(|line| !line.contains("expires"))
                .map(str::trim_end)
                .collect();
            // A carrier that has just come up is not either.
            let lines = lines.join("\n").replace(" linkdown", "");
            taken.push(((*command).to_owned(), lines));
        }
        Ok(Self(taken))
    }
}

/// Waits until the kernel has done with IPv6 addresses what it does by itself, and later
/// (`addrconf_dad_work()`): each has its local route, and an interface with any has a link-local one.
fn wait_for_addresses(host: &Host) -> Result<()> {
    // Some kinds of links have none of the latter.
    let deadline = Instant::now() + scaled(Duration::from_millis(500));
    while !has_done_with_addresses(host)? && Instant::now() < deadline {
        thread::sleep(GLANCE);
    }
    Ok(())
}

fn has_done_with_addresses(host: &Host) -> Result<bool> {
    let addresses = host.sh("ip -6 -o addr show")?;
    let routes = host.sh("ip -6 route show table local")?;
    // 2: inside    inet6 2001:db8:b::1/64 scope global ...
    let owned: Vec<(&str, &str)> = addresses
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let interface = words.next()?;
            let (address, _) = words.nth(1)?.split_once('/')?;
            (interface != "lo").then_some((interface, address))
        })
        .collect();
    Ok(owned.iter().all(|(interface, address)| {
        let route = format!("local {address} dev {interface} ");
        let is_link_local =
            |(other, address): &(&str, &str)| other == interface && address.starts_with("fe80:");
        routes.contains(&route) && owned.iter().any(is_link_local)
    }))
}

impl fmt::Debug for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (command, printed) in &self.0 {
            writeln!(f, "$ {command}\n{printed}")?;
        }
        Ok(())
    }
}

/// Fails with the differing commands' output if the two pictures differ.
pub fn ensure_unchanged(before: &HostState, after: &HostState) -> Result<()> {
    for ((command, then), (_, now)) in before.0.iter().zip(&after.0) {
        anyhow::ensure!(
            then == now,
            "`{command}` changed\nbefore:\n{then}\nafter:\n{now}"
        );
    }
    Ok(())
}
