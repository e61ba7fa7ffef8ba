//! The access log: one line a connection.
//!
//! * [`mod@line`]: what is told of a connection. [`termination`]: how it ended, in HAProxy's two letters.
//! * [`json`], [`logfmt`], [`tcplog`]: the formats. [`time`]: dates in them.
//! * [`frame`]: what a target wants around a line.
//! * [`writer`]: a thread and its queue, so that a slow disk never stops the data path. [`sink`]: where it
//!   writes to.

use crate::config::{AccessLogFormat, LogTarget};

mod frame;
mod json;
mod line;
mod logfmt;
mod sink;
mod tcplog;
mod termination;
mod time;
mod writer;

pub use line::{Concurrency, Line};
pub use sink::OpenError;
pub use termination::{By, During, Termination};
pub use writer::Lost;

use sink::Sink;
use writer::Writer;

/// Where access lines go.
#[derive(Debug, Default)]
pub struct AccessLog(Option<Written>);

/// Lines that are not part of the log.
#[derive(Debug)]
struct Written {
    target: LogTarget,
    format: AccessLogFormat,
    writer: Writer,
}

impl AccessLog {
    /// Opens the target; lines that it cannot take are counted in `lost`. The default is the log.
    pub fn open(
        target: &LogTarget,
        format: AccessLogFormat,
        lost: Lost,
    ) -> Result<Self, OpenError> {
        let Some(sink) = Sink::open(target)? else {
            return Ok(Self(None));
        };
        Ok(Self(Some(Written {
            target: target.clone(),
            format,
            writer: Writer::start(sink, target, lost)?,
        })))
    }

    /// What it was opened with; `None`: the log.
    #[must_use]
    pub fn target(&self) -> Option<(&LogTarget, AccessLogFormat)> {
        let written = self.0.as_ref()?;
        Some((&written.target, written.format))
    }

    /// Writes a line, or leaves that to the writer. It does not wait.
    pub fn write(&self, line: &Line<'_>) {
        match &self.0 {
            None => line.log(),
            Some(_) if !line.matters() => {}
            Some(written) => {
                let framed = frame::frame(&written.target, written.format, line);
                written.writer.write(framed);
            }
        }
    }

    /// Waits until all lines so far are written, at most 5 s: a disk that has not answered by then will not.
    pub async fn flush(&self) {
        if let Some(written) = &self.0 {
            written.writer.flush().await;
        }
    }
}

/// A line in one of the formats, without its end.
fn format(format: AccessLogFormat, line: &Line<'_>) -> String {
    match format {
        AccessLogFormat::Json => json::format(line),
        AccessLogFormat::Logfmt => logfmt::format(line),
        AccessLogFormat::Tcplog => tcplog::format(line),
    }
}

#[cfg(test)]
mod tests;
