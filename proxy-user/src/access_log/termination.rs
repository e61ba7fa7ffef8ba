//! How a connection ended, in the two letters of HAProxy's log (its configuration manual, 8.5, "Session
//! state at disconnection").

/// The first letter: who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Both sides, in order: `-`.
    Both,
    /// The client: `C`.
    Client,
    /// The server, or the network on the way to it: `S`.
    Server,
    /// limpid, by a rule: `P`.
    Proxy,
    /// limpid, for want of something: `R`.
    Resources,
    /// limpid, as its operator wants: `K`.
    Operator,
    /// A timeout, while it was the client's turn: `c`.
    ClientTimeout,
    /// A timeout, while it was the server's turn: `s`.
    ServerTimeout,
}

/// The second letter: what it was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    /// Finding out who the client is, and whether it is let in: `R`.
    Request,
    /// Connecting to a server: `C`.
    Connect,
    /// Moving bytes: `D`.
    Data,
}

/// Both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termination {
    by: By,
    /// `None`: wherever it was.
    during: Option<During>,
}

impl Termination {
    /// At that stage.
    #[must_use]
    pub const fn new(by: By, during: During) -> Self {
        let during = Some(during);
        Self { by, during }
    }

    /// At whichever stage it was.
    #[must_use]
    pub const fn wherever(by: By) -> Self {
        Self { by, during: None }
    }

    /// The two letters, of a connection that was at stage `reached`.
    #[must_use]
    pub fn letters(self, reached: During) -> String {
        let by = match self.by {
            By::Both => return "--".to_owned(),
            By::Client => 'C',
            By::Server => 'S',
            By::Proxy => 'P',
            By::Resources => 'R',
            By::Operator => 'K',
            By::ClientTimeout => 'c',
            By::ServerTimeout => 's',
        };
        let during = match self.during.unwrap_or(reached) {
            During::Request => 'R',
            During::Connect => 'C',
            During::Data => 'D',
        };
        String::from_iter([by, during])
    }
}
