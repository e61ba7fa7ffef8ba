//! What a running daemon can take from a file that has changed.

use thiserror::Error;

use super::{Config, Daemon};

/// Keys of `[daemon]` that differ and cannot change while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{} of `[daemon]` cannot change while limpid runs: stop it and start it again, or start another with \
     --take-over", quoted(.keys)
)]
pub struct NotReloadable {
    /// Them.
    pub keys: Vec<&'static str>,
}

fn quoted(keys: &[&str]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    keys.join(", ")
}

impl Config {
    /// Whether this can take the place of `before` in a running daemon: any listeners and pools can.
    pub fn reload_of(&self, before: &Self) -> Result<(), NotReloadable> {
        // Named one by one: a new key is to be decided on here.
        let Daemon {
            upstream_interface,
            attach,
            max_flows,
            log_format,
            drain_timeout: _,
            metrics: _,
            access_log: _,
            access_log_format: _,
        } = &self.daemon;
        let before = &before.daemon;
        let fixed = [
            (
                "upstream-interface",
                *upstream_interface == before.upstream_interface,
            ),
            ("attach", *attach == before.attach),
            ("max-flows", *max_flows == before.max_flows),
            ("log-format", *log_format == before.log_format),
        ];
        let differs = fixed.into_iter().filter(|(_, same)| !same);
        let keys: Vec<_> = differs.map(|(key, _)| key).collect();
        if keys.is_empty() {
            Ok(())
        } else {
            Err(NotReloadable { keys })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_needs_another_daemon_is_named() {
        let before = config("[daemon]\nmax-flows = 100\nattach = \"tcx\"");
        let after = config("[daemon]\nupstream-interface = \"eth0\"\nattach = \"tcx\"");
        let error = after.reload_of(&before).unwrap_err();
        assert_eq!(error.keys, ["upstream-interface", "max-flows"]);
        assert!(error.to_string().contains("`max-flows`"), "{error}");
    }

    #[test]
    fn the_rest_may_change() {
        let before = config("");
        let after = config(
            "daemon = { drain-timeout = \"1s\", metrics = \"127.0.0.1:9100\", \
             access-log = \"stdout\", access-log-format = \"tcplog\" }\n\
             [listeners.a]\nlisten = [\"0.0.0.0:80\"]\n[pools.a]\nupstream = [\"192.0.2.1:80\"]",
        );
        assert_eq!(after.reload_of(&before), Ok(()));
    }
}
