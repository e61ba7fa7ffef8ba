//! One daemon takes the place of another (`limpid run --take-over`), and no connection notices.
//!
//! The new one asks at the control socket of the old one, and both go on talking, in lines of JSON:
//!
//! | from | says | |
//! |---|---|---|
//! | new | the request `take-over` | |
//! | old | an [`Offer`], with descriptors | the listening sockets and the claims on pins and filters are shared; the old one goes on as before |
//! | new | `go` | its programs are in force; nothing is left that could fail |
//! | old | `yours` | it accepts no more, and has left its flows without sockets |
//! | old | `{"flow": N}` | a flow of its last ones needs no sockets any more, either |
//! | new | `end` | it ends itself: what the old one still has is to be reset |
//!
//! The end of the connection tells the new one that the old one is gone: before `yours` that it has
//! kept everything, afterwards that the tables hold nothing of its any more.
//!
//! Until `go` the new one may fail, for whatever reason, and nothing has happened. Connections that come
//! between `go` and the new one's first accept wait in the backlogs, which are the sockets' and not a
//! process's. Flows that need sockets (the engines `sockmap` and `copy`, or whose header or upstream is
//! waited for) stay with the old one until they end; then it ends itself.
//!
//! * [`successor`]: the new one, seen from the old one.
//! * [`predecessor`]: the old one, seen from the new one.

use serde::{Deserialize, Serialize};

mod predecessor;
mod successor;

pub use predecessor::{Deed, Heritage, Predecessor, TakeOverError, ask};
pub use successor::{Candidate, Estate, Preparing, Successor};

/// What a daemon that is taken over shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Offer {
    /// The descriptors that come with it.
    pub descriptors: Vec<Descriptor>,
    /// There may be flows in the pinned tables.
    pub steers: bool,
    /// The folder of the control socket was made for it.
    pub folder_made: bool,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Descriptor {
    /// A listening socket.
    Listener,
    /// The locked folder of the pins.
    Pins,
    /// The claim on the filters of this network namespace.
    Filters,
}

/// What the old daemon says after its offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FromOld {
    Yours,
    Flow(u64),
}

/// What the new daemon says after its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FromNew {
    Go,
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Daemons of different versions speak to each other.
    #[test]
    fn the_words_stay_the_same() {
        let offer = Offer {
            descriptors: vec![Descriptor::Listener, Descriptor::Pins, Descriptor::Filters],
            steers: true,
            folder_made: false,
        };
        let text = |message: Result<String, serde_json::Error>| message.expect("JSON");
        assert_eq!(
            text(serde_json::to_string(&offer)),
            r#"{"descriptors":["listener","pins","filters"],"steers":true,"folder-made":false}"#
        );
        assert_eq!(text(serde_json::to_string(&FromNew::Go)), r#""go""#);
        assert_eq!(text(serde_json::to_string(&FromNew::End)), r#""end""#);
        assert_eq!(text(serde_json::to_string(&FromOld::Yours)), r#""yours""#);
        assert_eq!(
            text(serde_json::to_string(&FromOld::Flow(7))),
            r#"{"flow":7}"#
        );
    }
}
