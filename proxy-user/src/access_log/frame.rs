//! What a target wants around a line.

use std::process;
use std::sync::LazyLock;

use nix::sys::utsname::uname;

use super::line::Line;
use super::time;
use crate::config::{AccessLogFormat, LogTarget};

/// Who speaks.
const IDENTIFIER: &str = "limpid";

/// The facility `local0` (RFC 5424, 6.2.1).
const FACILITY: u8 = 16;

/// What is written at once.
pub(super) fn frame(target: &LogTarget, format: AccessLogFormat, line: &Line<'_>) -> Vec<u8> {
    let text = super::format(format, line);
    match target {
        LogTarget::Log | LogTarget::Stdout | LogTarget::File(_) => plain(format, line, text),
        LogTarget::Syslog => syslog(line, &text),
        LogTarget::Journald => journal(line, &text),
    }
}

/// A line of a file.
fn plain(format: AccessLogFormat, line: &Line<'_>, mut text: String) -> Vec<u8> {
    text.push('\n');
    match format {
        AccessLogFormat::Json | AccessLogFormat::Logfmt => text.into_bytes(),
        // In files HAProxy's lines come from a syslog daemon, and what reads them expects its five words.
        AccessLogFormat::Tcplog => {
            static HOST: LazyLock<String> = LazyLock::new(host);
            let (time, pid) = (time::syslog(line.time), process::id());
            format!("{time} {} {IDENTIFIER}[{pid}]: {text}", *HOST).into_bytes()
        }
    }
}

/// The host's name up to its first dot (RFC 3164, 4.1.2).
fn host() -> String {
    let name = uname().map(|names| names.nodename().to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    match name.split('.').next() {
        None | Some("") => "localhost".to_owned(),
        Some(short) => short.to_owned(),
    }
}

/// A message for `/dev/log`: RFC 3164 without the host, which all syslog daemons expect there.
fn syslog(line: &Line<'_>, text: &str) -> Vec<u8> {
    let priority = FACILITY * 8 + line.severity();
    let (time, pid) = (time::syslog(line.time), process::id());
    format!("<{priority}>{time} {IDENTIFIER}[{pid}]: {text}").into_bytes()
}

/// An entry in the journal's native protocol, with the line as its message and all fields apart.
fn journal(line: &Line<'_>, text: &str) -> Vec<u8> {
    let mut entry = Vec::with_capacity(1024);
    field(&mut entry, "MESSAGE", text);
    field(&mut entry, "PRIORITY", &line.severity().to_string());
    field(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER);
    field(&mut entry, "SYSLOG_FACILITY", &FACILITY.to_string());
    field(&mut entry, "SYSLOG_PID", &process::id().to_string());
    for (key, value) in line.fields() {
        let key = format!("LIMPID_{}", key.to_ascii_uppercase());
        field(&mut entry, &key, &value.to_string());
    }
    entry
}

/// systemd's "Native Journal Protocol": a value with line ends has its length before it, in little endian.
fn field(entry: &mut Vec<u8>, key: &str, value: &str) {
    entry.extend_from_slice(key.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_value_with_line_ends_has_its_length() {
        let mut entry = Vec::new();
        field(&mut entry, "A", "b");
        field(&mut entry, "C", "d\ne");
        assert_eq!(entry, b"A=b\nC\n\x03\0\0\0\0\0\0\0d\ne\n");
    }
}
