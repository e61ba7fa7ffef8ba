//! Files as a whole: what is said of them, and where.

use std::path::Path;

use clap::Parser as _;
use proptest::prelude::*;

use super::*;
use crate::cli::{Cli, Command};

/// A file with nothing wrong.
const GOOD: &str = r#"
[listeners.game]
listen = ["192.0.2.1:25565"]
accept-proxy = true
trust = ["198.51.100.0/24"]

[pools.game]
upstream = ["10.0.0.1:25565", { target = "game:25565", weight = 2 }]
"#;

fn read(text: &str) -> Result<Loaded, LoadError> {
    parse(Path::new("limpid.toml"), text)
}

/// Each error and warning, as `LINE:COLUMN PLACE SEVERITY: MESSAGE`.
fn said(text: &str) -> Vec<String> {
    let report = match read(text) {
        Ok(loaded) => loaded.warnings,
        Err(LoadError::Wrong { report, .. }) => report,
        Err(error @ LoadError::Read { .. }) => panic!("{error}"),
    };
    let line = |one: &Diagnostic| {
        format!(
            "{}:{} {} {}: {}",
            one.line,
            one.column,
            one.place,
            one.cause.severity(),
            one.cause
        )
    };
    report.diagnostics().iter().map(line).collect()
}

/// A listener and a pool with these lines, and what must be all that is said of them.
fn ensure_said(listener: &str, pool: &str, expected: &[&str]) {
    let server = if pool.contains("upstream =") {
        ""
    } else {
        "upstream = [\"10.0.0.1:80\"]\n"
    };
    let text = format!("[listeners.a]\n{listener}\n[pools.a]\n{pool}\n{server}");
    assert_eq!(said(&text), expected, "{text}");
}

const HERE: &str = "listen = [\"192.0.2.1:80\"]";

#[test]
fn everything_has_a_default() {
    let config = Config::default();
    assert!(config.listeners.is_empty() && config.pools.is_empty());
    assert_eq!(Listener::default().listen, []);
    assert_eq!(Pool::default().upstream, []);
}

#[test]
fn a_good_file_is_read() {
    let loaded = read(GOOD).unwrap();
    assert!(loaded.warnings.diagnostics().is_empty());
    let name: Name = "game".parse().unwrap();
    let pool = &loaded.config.pools[&name];
    assert_eq!(pool.upstream[0].target.to_string(), "10.0.0.1:25565");
    assert_eq!(pool.upstream[1].weight, Weight::new(2));
    assert_eq!(pool.retries, Pool::default().retries);
    assert!(loaded.config.listeners[&name].accept_proxy);
}

/// Flags, keys and what is written mean the same.
#[test]
fn what_is_written_is_what_is_read() {
    let config = read(GOOD).unwrap().config;
    let written = toml::to_string(&config).unwrap();
    assert_eq!(read(&written).unwrap().config, config);
    let line = "limpid run --listen 192.0.2.1:25565 --accept-proxy --trust 198.51.100.0/24 \
                --upstream 10.0.0.1:25565 --upstream game:25565,weight=2";
    let options = options(line);
    let name = Name::default();
    assert_eq!(
        options.listeners[&name],
        config.listeners.into_values().next().unwrap()
    );
    assert_eq!(
        options.pools[&name],
        config.pools.into_values().next().unwrap()
    );
}

fn options(line: &str) -> Config {
    let Command::Run(args) = Cli::try_parse_from(line.split_whitespace())
        .unwrap()
        .command
    else {
        panic!("{line}");
    };
    args.options()
}

#[test]
fn a_command_line_is_checked_in_its_own_words() {
    let base = "limpid run --listen 192.0.2.1:80 --upstream 10.0.0.1:80";
    for (more, expected) in [
        (
            "--accept-proxy",
            "--accept-proxy needs --trust: name the networks whose hosts may say who the client is \
             (--trust 0.0.0.0/0 for anyone)",
        ),
        ("--trust 10.0.0.0/8", "--trust needs --accept-proxy"),
        (
            "--send-proxy v1 --send-proxy-crc32c --send-proxy-tlvs",
            "--send-proxy-crc32c needs --send-proxy v2\n--send-proxy-tlvs needs --send-proxy v2",
        ),
    ] {
        let findings = options(&format!("{base} {more}")).check();
        let error = findings.of_command_line().unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let findings = options(&format!("{base} --rise 7")).check();
    assert_eq!(
        findings.of_command_line().unwrap(),
        ["--rise has no effect without --check-interval"]
    );
}

#[test]
fn every_wrong_value_is_named_with_its_place() {
    let text = "[daemon]\nmax-flows = 0\ndrain-timeout = 30\n\n[listeners.\"a b\"]\n\n[listeners.game]\n\
                listen = [\n  \"0.0.0.0:80\",\n  \"nowhere\",\n]\nlisten_on = 1\n";
    assert_eq!(
        said(text),
        [
            "2:13 daemon.max-flows error: \"0\" is not a number from 1 to 8388608",
            "3:17 daemon.drain-timeout error: invalid type: integer `30`, expected a string: a time of \
             up to a year; write 0s, 500ms, 5s, 2m, 1h",
            "5:12 listeners.\"a b\" error: \"a b\" is not a name: 1 to 64 letters, digits, `-`, `_`, `.` \
             and `:`",
            "10:3 listeners.game.listen[1] error: \"nowhere\" is not an address with ports: ADDR:PORT, \
             ADDR:FIRST-LAST or ADDR:*, an IPv6 address in brackets",
            "12:1 listeners.game.listen_on error: unknown key `listen_on`",
        ]
    );
}

#[test]
fn an_unknown_key_names_those_that_there_are() {
    let Err(LoadError::Wrong { report, .. }) = read("[pools.a]\nsend_proxy = \"v2\"") else {
        panic!("it is taken");
    };
    let message = report.diagnostics()[0].message();
    assert!(
        message.starts_with("unknown key `send_proxy`: did you mean `send-proxy`? allowed here: "),
        "{message}"
    );
    for key in ["upstream", "balance", "send-proxy-crc32c"] {
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn it_is_shown_with_its_line() {
    let text = GOOD.replace("true", "false");
    let error = read(&text).unwrap_err().to_string();
    assert_eq!(
        error,
        "limpid.toml has an error\n\n\
         error: `trust` needs `accept-proxy`\n\
         \x20--> limpid.toml:5:1\n\
         \x20 |\n\
         5 | trust = [\"198.51.100.0/24\"]\n\
         \x20 | ^^^^^^^^^^^^^^^^^^^^^^^^^^^"
    );
}

#[test]
fn what_is_no_toml_is_told_whole() {
    let said = said("[listeners.a]\nlisten = [0.0.0.0:80]\naccept-proxy = yes\n");
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("2:"), "{said:?}");
    assert!(said[1].starts_with("3:16 "), "{said:?}");
}

#[test]
fn a_listener_needs_an_address_and_a_pool() {
    assert_eq!(said(""), ["1:1  error: there is no listener"]);
    assert_eq!(
        said("[listeners.a]\n[pools.a]\n"),
        [
            "1:12 listeners.a error: the listener has no `listen`",
            "2:8 pools.a error: the pool has no server: `upstream` is missing",
        ]
    );
    ensure_said(
        &format!("{HERE}\npool = \"b\""),
        "",
        &[
            "3:1 listeners.a.pool error: there is no pool `b`",
            "4:8 pools.a warning: no listener uses the pool `a`",
        ],
    );
    let problem = Problem::NoSuchPool {
        pool: "b".parse().unwrap(),
        known: vec!["a".parse().unwrap(), "c".parse().unwrap()],
    };
    assert!(problem.line(Form::File).ends_with("`a`, `c`"));
}

#[test]
fn headers_are_taken_from_somebody() {
    let with = |more: &str| format!("{HERE}\n{more}");
    for (more, expected) in [
        (
            "accept-proxy = true",
            &["3:1 listeners.a.accept-proxy error: `accept-proxy` needs `trust`"][..],
        ),
        (
            "trust = [\"10.0.0.0/8\"]",
            &["3:1 listeners.a.trust error: `trust` needs `accept-proxy`"],
        ),
        (
            "accept-proxy = true\ntrust = [\"10.0.0.0/8\", \"::/0\"]\nheader-timeout = \"2s\"",
            &["5:1 listeners.a.header-timeout warning: `header-timeout` of 2s is short"],
        ),
        (
            "header-timeout = \"9s\"",
            &[
                "3:1 listeners.a.header-timeout warning: `header-timeout` has no effect without \
                 `accept-proxy`",
            ],
        ),
    ] {
        ensure_said(&with(more), "", expected);
    }
}

#[test]
fn what_listeners_have_is_theirs_alone() {
    let overlap = |a: &str, b: &str| {
        let text = format!(
            "[listeners.a]\nlisten = [\"{a}\"]\n[listeners.b]\nlisten = [\"{b}\"]\npool = \"a\"\n\
             [pools.a]\nupstream = [\"10.0.0.1:80\"]"
        );
        match &said(&text)[..] {
            [] => false,
            [one] => {
                let expected = format!(
                    "4:11 listeners.b.listen[0] error: {b} overlaps {a} of the listener `a`"
                );
                assert_eq!(*one, expected);
                true
            }
            more => panic!("{more:?}"),
        }
    };
    for (a, b, expected) in [
        ("192.0.2.1:80", "192.0.2.1:80", true),
        ("192.0.2.1:80", "192.0.2.2:80", false),
        ("192.0.2.1:80", "192.0.2.1:81", false),
        ("0.0.0.0:80", "192.0.2.1:80", true),
        ("0.0.0.0:80", "[::]:80", true),
        ("[::]:80", "192.0.2.1:80", true),
        ("0.0.0.0:80", "[2001:db8::1]:80", false),
        ("192.0.2.1:80-90", "192.0.2.1:90-99", true),
        ("192.0.2.1:80-90", "192.0.2.1:91-99", false),
        ("192.0.2.1:80-90", "0.0.0.0:*", true),
        ("192.0.2.1:80-90", "192.0.2.1:85", false),
        ("192.0.2.1:0", "192.0.2.1:0", false),
    ] {
        assert_eq!(overlap(a, b), expected, "{a} {b}");
        assert_eq!(overlap(b, a), expected, "{b} {a}");
    }
    ensure_said(
        "listen = [\"0.0.0.0:80\", \"[::]:80\"]",
        "",
        &["2:25 listeners.a.listen[1] error: [::]:80 overlaps 0.0.0.0:80 of the listener `a`"],
    );
}

#[test]
fn interfaces_keep_listeners_apart() {
    let text = |other: &str| {
        format!(
            "[listeners.a]\n{HERE}\ndownstream-interface = \"eth0\"\n[listeners.b]\n{HERE}\n{other}\n\
             pool = \"a\"\n[pools.a]\nupstream = [\"10.0.0.1:80\"]"
        )
    };
    assert_eq!(said(&text("downstream-interface = \"eth1\"")), [""; 0]);
    assert_eq!(said(&text("downstream-interface = \"eth0\"")).len(), 1);
    assert_eq!(said(&text("")).len(), 1);
    assert_eq!(
        said(&text("downstream-interface = \"sixteen-letters!\"")),
        [
            "6:1 listeners.b.downstream-interface error: \"sixteen-letters!\" is not the name of an interface"
        ]
    );
}

#[test]
fn metrics_have_a_port_of_their_own() {
    let text = |metrics: &str| {
        format!(
            "daemon.metrics = \"{metrics}\"\n[listeners.a]\nlisten = [\"0.0.0.0:9000\", \
             \"0.0.0.0:9001-9999\"]\n[pools.a]\nupstream = [\"10.0.0.1:80\"]"
        )
    };
    assert_eq!(
        said(&text("127.0.0.1:9000")),
        ["1:8 daemon.metrics error: `metrics` overlaps 0.0.0.0:9000 of the listener `a`"]
    );
    assert_eq!(said(&text("127.0.0.1:9100")), [""; 0]);
    assert_eq!(said(&text("[::1]:9000")), [""; 0]);
}

#[test]
fn servers_can_be_reached_and_told_apart() {
    for (pool, expected) in [
        (
            "upstream = [\"a:1\", \"a:1,weight=3\", \"b:1,name=a:1\"]",
            &[
                "4:20 pools.a.upstream[1] error: two servers are called `a:1`",
                "4:36 pools.a.upstream[2] error: two servers are called `a:1`",
            ][..],
        ),
        (
            "upstream = [\"a:1,weight=0\", \"b:1,weight=0\"]",
            &["4:1 pools.a.upstream error: every server has weight 0: none gets connections"],
        ),
        (
            "upstream = [\"a:same\", \"b:1\"]\ncheck-interval = \"2s\"",
            &[
                "4:13 pools.a.upstream[0] error: a:same has no port of its own that `check-interval` \
                 could connect to",
            ],
        ),
        (
            "upstream = [\"[::]:80\"]",
            &["4:13 pools.a.upstream[0] error: [::]:80 is not an address to connect to"],
        ),
        (
            "upstream = [\"192.0.2.1:80\"]",
            &[
                "4:13 pools.a.upstream[0] error: 192.0.2.1:80 leads back to this pool: its listener is \
                 at 192.0.2.1:80",
            ],
        ),
        ("upstream = [\"192.0.2.1:81\", \"127.0.0.1:80\"]", &[]),
        (
            "send-proxy = \"v1\"\nsend-proxy-unique-id = true",
            &[
                "5:1 pools.a.send-proxy-unique-id error: `send-proxy-unique-id` needs \
                 `send-proxy = \"v2\"`",
            ],
        ),
        (
            "send-proxy = \"v2\"\nsend-proxy-tlvs = true\nsend-proxy-crc32c = true",
            &[
                "5:1 pools.a.send-proxy-tlvs warning: `send-proxy-tlvs` has no effect without \
                 `accept-proxy`",
            ],
        ),
        (
            "fall = 9\neject-after = 0\neject-time = \"1m\"",
            &[
                "4:1 pools.a.fall warning: `fall` has no effect without `check-interval`",
                "6:1 pools.a.eject-time warning: `eject-time` has no effect without `eject-after`",
            ],
        ),
    ] {
        ensure_said(HERE, pool, expected);
    }
}

#[test]
fn what_a_listener_cannot_do_is_said() {
    for (listener, pool, expected) in [
        (
            "source = \"client\"",
            "upstream = [\"127.0.0.1:81\"]",
            &[
                "5:13 pools.a.upstream[0] error: `source = \"client\"` does not work with a server on \
                 this very host, 127.0.0.1:81",
            ][..],
        ),
        (
            "source = \"client\"",
            "upstream = [\"[2001:db8::1]:80\"]",
            &[
                "1:12 listeners.a warning: clients and servers are of different IP versions, and \
                 `source-mismatch = \"refuse\"` refuses all of them",
            ],
        ),
        (
            "source = \"client\"\nsource-mismatch = \"proxy\"",
            "upstream = [\"[2001:db8::1]:80\"]",
            &[],
        ),
        // What comes by eth0 is not what this host sends to itself.
        (
            "downstream-interface = \"eth0\"",
            "upstream = [\"192.0.2.1:80\"]",
            &[],
        ),
        (
            "splice = \"packet\"\nfast-open = 16",
            "",
            &[
                "4:1 listeners.a.fast-open warning: `fast-open` keeps flows from the engine `packet`, \
                 which `splice` asks for",
            ],
        ),
        (
            "max-connections = 10\nmax-connections-per-client = 20",
            "",
            &[
                "4:1 listeners.a.max-connections-per-client warning: `max-connections-per-client` has \
                 no effect: `max-connections` is reached first",
            ],
        ),
        (
            "source-mismatch = \"proxy\"",
            "",
            &[
                "3:1 listeners.a.source-mismatch warning: `source-mismatch` has no effect without \
                 `source = \"client\"`",
            ],
        ),
    ] {
        ensure_said(&format!("{HERE}\n{listener}"), pool, expected);
    }
}

/// A piece of a file, good or not.
fn piece() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "[daemon]",
        "[listeners.a]",
        "[pools.a]",
        "[[pools.a.upstream]]",
        "listen = ",
        "upstream = ",
        "target = ",
        "trust = ",
        "metrics = ",
        "max-flows = ",
        "header-timeout = ",
        "\"\"",
        "\"a:1\"",
        "\"0.0.0.0:80\"",
        "\"ä\u{301}\"",
        "'",
        "\"",
        "\"\"\"",
        "[",
        "]",
        "{",
        "}",
        ",",
        "=",
        ".",
        "#",
        "true",
        "1e9",
        "-1",
        "99999999999999999999",
        "1979-05-27",
        "\r\n",
        "\r",
        "\t",
        "\u{feff}",
        "\0",
    ];
    prop_oneof![
        4 => prop::sample::select(WORDS).prop_map(str::to_owned),
        3 => Just("\n".to_owned()),
        1 => any::<String>(),
    ]
}

proptest! {
    /// Whatever a file holds, it is taken, or told where it is wrong.
    #[test]
    fn no_text_is_too_much(pieces in prop::collection::vec(piece(), 0..40)) {
        let text = pieces.concat();
        match read(&text) {
            Ok(loaded) => drop(loaded.warnings.to_string()),
            Err(error) => {
                let LoadError::Wrong { report, .. } = &error else {
                    panic!("{error}");
                };
                prop_assert!(report.count(Severity::Error) > 0);
                prop_assert!(!error.to_string().is_empty());
                for one in report.diagnostics() {
                    prop_assert!(text.get(one.span.clone()).is_some());
                    prop_assert!(one.line <= text.matches('\n').count() + 1 && one.column > 0);
                }
            }
        }
    }

    /// A good file with something missing or in between.
    #[test]
    fn no_change_of_a_file_is_too_much(
        from in 0..GOOD.len(), len in 0..20_usize, piece in piece(),
    ) {
        let to = (from + len).min(GOOD.len());
        let text = format!("{}{piece}{}", &GOOD[..from], &GOOD[to..]);
        match read(&text) {
            Ok(loaded) => drop(loaded.warnings.to_string()),
            Err(error) => prop_assert!(error.to_string().contains("limpid.toml")),
        }
    }
}
