//! The programs that limpid is measured against, and the servers behind all of them, set up as
//! somebody would who wants them to be fast: no logs, no limits in the way, a worker for each CPU.

use std::path::Path;

use anyhow::Result;
use limpid_tests::net::Host;
use limpid_tests::process::Process;
use nix::sys::resource::{Resource, getrlimit};

use crate::bed::{LISTENER, PORT, SERVICE};

/// Of each nginx worker; open files are the narrower limit.
const CONNECTIONS: u32 = 100_000;

/// Files that HAProxy opens beside those of its connections, with some to spare, and how many pipes
/// are among them (else it wants one for every fourth connection).
const HAPROXY_FILES: u64 = 600;
const HAPROXY_PIPES: u64 = 100;

/// HAProxy in TCP mode, for as many connections as it may open files for.
pub(crate) fn haproxy(host: &Host, directory: &Path, name: &str, splice: bool) -> Result<Process> {
    let config = directory.join(format!("{name}.cfg"));
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let connections = files.saturating_sub(HAPROXY_FILES) / 2;
    let splice = if splice { "option splice-auto" } else { "" };
    std::fs::write(
        &config,
        format!(
            "global\n  maxconn {connections}\n  maxpipes {HAPROXY_PIPES}\n\
             defaults\n  mode tcp\n  {splice}\n\
             \x20 timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
             listen service\n  bind {LISTENER}\n  server backend {SERVICE}\n"
        ),
    )?;
    let args = ["-db", "-f", &config.to_string_lossy()];
    let mut process = Process::start(host, directory, name, "/usr/sbin/haproxy".as_ref(), &args)?;
    process.wait_until_listening(host, PORT)?;
    Ok(process)
}

/// nginx as a TCP proxy.
pub(crate) fn nginx_stream(host: &Host, directory: &Path, name: &str) -> Result<Process> {
    let modules = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";
    let body = format!(
        "stream {{ access_log off; server {{ listen {LISTENER} backlog=16384; \
         proxy_timeout 1h; proxy_pass {SERVICE}; }} }}"
    );
    nginx(host, directory, name, modules, &body)
}

/// nginx as the web server behind.
pub(crate) fn nginx_web(host: &Host, directory: &Path, name: &str) -> Result<Process> {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| {
        let path = directory.join(format!("{name}-{what}"));
        format!("{what}_temp_path {};", path.display())
    });
    let body = format!(
        "http {{ {} access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; \
         server {{ listen {SERVICE} backlog=16384; location / {{ return 200 \"limpid\\n\"; }} }} }}",
        temporary.concat()
    );
    nginx(host, directory, name, "", &body)
}

/// nginx's workers would survive the death of their master. A PID namespace takes them along.
fn nginx(host: &Host, directory: &Path, name: &str, preamble: &str, body: &str) -> Result<Process> {
    let config = directory.join(format!("{name}.conf"));
    let pid = directory.join(format!("{name}.pid"));
    std::fs::write(
        &config,
        format!(
            "{preamble} user root; daemon off; worker_processes auto; pid {}; error_log stderr; \
             events {{ worker_connections {CONNECTIONS}; }} {body}",
            pid.display(),
        ),
    )?;
    let config = config.to_string_lossy();
    let args = [
        "--pid",
        "--fork",
        "--kill-child",
        "--",
        "/usr/sbin/nginx",
        "-e",
        "stderr",
        "-c",
        &config,
    ];
    let mut process = Process::start(host, directory, name, "/usr/bin/unshare".as_ref(), &args)?;
    process.wait_until_listening(host, PORT)?;
    Ok(process)
}
