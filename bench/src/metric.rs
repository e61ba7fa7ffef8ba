//! The metrics: what each number is called, counted in, and whether more of it is better.

/// Which way is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// Something that is read off a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// Requests a second over 1 connection.
    KeepAlive1,
    /// Requests a second over 32 connections.
    KeepAlive32,
    /// Requests a second over 256 connections.
    KeepAlive256,
    /// Requests a second, each on a connection of its own.
    Close,
    /// Bytes from client to backend.
    Up,
    /// Bytes from backend to client.
    Down,
    /// Median latency of one connection that waits for each answer.
    KeepAlive1P50,
    /// 99th percentile of 256 connections that leave no CPU idle.
    KeepAlive256P99,
    /// Median at a fixed rate.
    PacedP50,
    /// 99th percentile at a fixed rate.
    PacedP99,
    /// The machine's CPU time for requests over 256 connections.
    RequestMachineCpu,
    /// The proxy process's part of it.
    RequestProcessCpu,
    /// The machine's CPU time for connections of one request.
    CloseMachineCpu,
    /// The proxy process's part of it.
    CloseProcessCpu,
    /// The machine's CPU time for bytes from client to backend.
    UpMachineCpu,
    /// The machine's CPU time for bytes from backend to client.
    DownMachineCpu,
    /// The proxy process's part of it.
    DownProcessCpu,
    /// Kernel memory of an idle connection, on all three hosts.
    IdleKernel,
    /// The proxy process's memory of an idle connection.
    IdleProcess,
    /// What of both is the proxy host's: made from the two above and `direct`.
    Idle,
    /// What a sender gets rid of whose reader does not read.
    StallTaken,
    /// What the machine's memory grows by meanwhile.
    StallMemory,
}

impl Metric {
    /// All, in the order of the report.
    pub(crate) const ALL: [Self; 22] = [
        Self::KeepAlive1,
        Self::KeepAlive32,
        Self::KeepAlive256,
        Self::Close,
        Self::Up,
        Self::Down,
        Self::KeepAlive1P50,
        Self::KeepAlive256P99,
        Self::PacedP50,
        Self::PacedP99,
        Self::RequestMachineCpu,
        Self::RequestProcessCpu,
        Self::CloseMachineCpu,
        Self::CloseProcessCpu,
        Self::UpMachineCpu,
        Self::DownMachineCpu,
        Self::DownProcessCpu,
        Self::IdleKernel,
        Self::IdleProcess,
        Self::Idle,
        Self::StallTaken,
        Self::StallMemory,
    ];

    /// Its name in the JSON file.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::KeepAlive1 => "keepalive_1",
            Self::KeepAlive32 => "keepalive_32",
            Self::KeepAlive256 => "keepalive_256",
            Self::Close => "close",
            Self::Up => "bulk_up",
            Self::Down => "bulk_down",
            Self::KeepAlive1P50 => "keepalive_1_p50",
            Self::KeepAlive256P99 => "keepalive_256_p99",
            Self::PacedP50 => "paced_p50",
            Self::PacedP99 => "paced_p99",
            Self::RequestMachineCpu => "cpu_request_machine",
            Self::RequestProcessCpu => "cpu_request_process",
            Self::CloseMachineCpu => "cpu_close_machine",
            Self::CloseProcessCpu => "cpu_close_process",
            Self::UpMachineCpu => "cpu_up_machine",
            Self::DownMachineCpu => "cpu_down_machine",
            Self::DownProcessCpu => "cpu_down_process",
            Self::IdleKernel => "idle_kernel",
            Self::IdleProcess => "idle_process",
            Self::Idle => "idle_proxy_host",
            Self::StallTaken => "stall_taken",
            Self::StallMemory => "stall_memory",
        }
    }

    /// Its name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KeepAlive1 => "keep-alive, 1 connection",
            Self::KeepAlive32 => "keep-alive, 32 connections",
            Self::KeepAlive256 => "keep-alive, 256 connections",
            Self::Close => "one request a connection",
            Self::Up => "bulk, client to backend",
            Self::Down => "bulk, backend to client",
            Self::KeepAlive1P50 => "latency p50, 1 connection",
            Self::KeepAlive256P99 => "latency p99, 256 connections, saturated",
            Self::PacedP50 => "latency p50, fixed rate",
            Self::PacedP99 => "latency p99, fixed rate",
            Self::RequestMachineCpu => "CPU, keep-alive requests (machine)",
            Self::RequestProcessCpu => "CPU, keep-alive requests (proxy process)",
            Self::CloseMachineCpu => "CPU, one request a connection (machine)",
            Self::CloseProcessCpu => "CPU, one request a connection (proxy process)",
            Self::UpMachineCpu => "CPU, client to backend (machine)",
            Self::DownMachineCpu => "CPU, backend to client (machine)",
            Self::DownProcessCpu => "CPU, backend to client (proxy process)",
            Self::IdleKernel => "idle connection, kernel, all hosts",
            Self::IdleProcess => "idle connection, proxy process",
            Self::Idle => "idle connection, proxy host",
            Self::StallTaken => "stalled reader: bytes taken in",
            Self::StallMemory => "stalled reader: memory, all hosts",
        }
    }

    /// What it is counted in.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::KeepAlive1 | Self::KeepAlive32 | Self::KeepAlive256 | Self::Close => "requests/s",
            Self::Up | Self::Down => "Gb/s",
            Self::KeepAlive1P50 | Self::KeepAlive256P99 | Self::PacedP50 | Self::PacedP99 => "µs",
            Self::RequestMachineCpu
            | Self::RequestProcessCpu
            | Self::CloseMachineCpu
            | Self::CloseProcessCpu => "s/million",
            Self::UpMachineCpu | Self::DownMachineCpu | Self::DownProcessCpu => "s/GB",
            Self::IdleKernel | Self::IdleProcess | Self::Idle => "KiB",
            Self::StallTaken | Self::StallMemory => "MB",
        }
    }

    /// Which way is up.
    pub(crate) fn better(self) -> Better {
        match self.unit() {
            "requests/s" | "Gb/s" => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// A value of it, with three digits that count.
    pub(crate) fn show(self, value: f64) -> String {
        let digits = match value.abs() {
            v if v >= 100.0 => 0,
            v if v >= 10.0 => 1,
            _ => 2,
        };
        let plain = format!("{value:.digits$}");
        match plain.split_at_checked(plain.len().saturating_sub(3)) {
            // Thousands are easier to read apart.
            Some((thousands, rest)) if digits == 0 && value >= 10_000.0 => {
                format!("{thousands} {rest}")
            }
            _ => plain,
        }
    }
}
