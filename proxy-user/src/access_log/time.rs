//! Dates, as each format writes them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// `2009-02-06T12:12:51.443000Z`, in UTC (RFC 3339).
pub(super) fn rfc3339(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// `06/Feb/2009:12:12:51.443`, in the host's time zone: HAProxy's `%t`.
pub(super) fn haproxy(time: Timestamp) -> String {
    write("%d/%b/%Y:%H:%M:%S.%3f", local(time))
}

/// `Feb  6 12:12:51`, in the host's time zone (RFC 3164, 4.1.2).
pub(super) fn syslog(time: Timestamp) -> String {
    write("%b %e %H:%M:%S", local(time))
}

fn local(time: Timestamp) -> DateTime {
    TimeZone::system().to_datetime(time)
}

fn write(format: &str, time: DateTime) -> String {
    // Fails for formats that do not exist only.
    strtime::format(format, time).unwrap_or_default()
}
