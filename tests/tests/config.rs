//! Configuration files as an operator meets them: `limpid check`, and the pages that tell of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use anyhow::{Context, Result, ensure};
use limpid_tests::programs::{limpid_binary, show};
use limpid_tests::suite::{HAPROXY, Lab, Suite};
use serde_json::Value;
use toml::Table;

/// A file with an error and a warning, in lines that are known.
const WRONG: &str = "\
[listeners.game]
listen = [\"192.0.2.1:25565\"]
accept-proxy = true
header-timeout = \"1s\"

[pools.game]
upstream = [\"192.0.2.10:25565\"]
";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.test(
        "check_of_a_good_file",
        &[],
        |lab| async move { good_file(&lab) },
    );
    suite.test("check_of_a_wrong_file", &[], |lab| async move {
        wrong_file(&lab)
    });
    suite.test("check_as_json", &[], |lab| async move { as_json(&lab) });
    suite.test("check_of_no_file", &[], |lab| async move { no_file(&lab) });
    suite.test("the_schema_is_in_the_docs", &[], |_| async {
        schema_in_docs()
    });
    suite.test("the_example_has_every_key", &[], |lab| async move {
        example(&lab)
    });
    suite.test(
        "pages_have_valid_files",
        &[],
        |lab| async move { pages(&lab) },
    );
    suite.test(
        "haproxy_takes_what_is_replaced",
        &[HAPROXY],
        |lab| async move { haproxy(&lab) },
    );
    suite.run()
}

fn limpid(args: &[&str]) -> Result<Output> {
    Ok(Command::new(limpid_binary()?).args(args).output()?)
}

/// `limpid check` of a text, with more options.
fn check(lab: &Lab, text: &str, more: &[&str]) -> Result<Output> {
    let file = lab.path().join("limpid.toml");
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    limpid(&[&["check", &file], more].concat())
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name)
}

fn page(name: &str) -> Result<String> {
    let path = docs(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn good_file(lab: &Lab) -> Result<()> {
    let text = WRONG.replace("accept-proxy = true\nheader-timeout = \"1s\"\n", "");
    let output = check(lab, &text, &[])?;
    let shown = show(&output);
    ensure!(output.status.success(), "{shown}");
    let line = String::from_utf8(output.stdout)?;
    ensure!(
        line.ends_with("limpid.toml: valid: 1 listener, 1 pool, 1 server\n"),
        "{shown}"
    );
    ensure!(output.stderr.is_empty(), "{shown}");

    // A warning does not make it unusable, and is told.
    let output = check(lab, &format!("{text}rise = 9\n"), &[])?;
    let shown = show(&output);
    ensure!(
        output.status.success() && shown.contains("1 server, 1 warning"),
        "{shown}"
    );
    let warned = String::from_utf8(output.stderr)?;
    ensure!(
        warned.contains("warning: `rise` has no effect without `check-interval`")
            && warned.contains("limpid.toml:6:1"),
        "{shown}"
    );
    Ok(())
}

fn wrong_file(lab: &Lab) -> Result<()> {
    let output = check(lab, WRONG, &[])?;
    let shown = show(&output);
    ensure!(output.status.code() == Some(1), "{shown}");
    ensure!(output.stdout.is_empty(), "{shown}");
    for words in [
        "limpid.toml has an error",
        "error: `accept-proxy` needs `trust`",
        "limpid.toml:3:1",
        "3 | accept-proxy = true",
        "| ^^^^^^^^^^^^^^^^^^^",
        "0.0.0.0/0",
        "warning: `header-timeout` of 1s is short",
    ] {
        ensure!(shown.contains(words), "{words:?} is missing: {shown}");
    }
    let output = check(lab, &WRONG.replace("listen =", "lisen ="), &[])?;
    let shown = show(&output);
    ensure!(output.status.code() == Some(1), "{shown}");
    for words in ["unknown key `lisen`", "did you mean `listen`", ":2:1"] {
        ensure!(shown.contains(words), "{words:?} is missing: {shown}");
    }
    Ok(())
}

fn as_json(lab: &Lab) -> Result<()> {
    let output = check(lab, WRONG, &["--json"])?;
    let shown = show(&output);
    ensure!(output.status.code() == Some(1), "{shown}");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let told = told.as_array().context("no array")?;
    let about = |one: &Value| {
        (
            one["severity"].as_str().map(str::to_owned),
            one["path"].as_str().map(str::to_owned),
            one["line"].as_u64(),
            one["column"].as_u64(),
        )
    };
    let expected = [
        ("error", "listeners.game.accept-proxy", 3),
        ("warning", "listeners.game.header-timeout", 4),
    ]
    .map(|(severity, path, line)| {
        (
            Some(severity.to_owned()),
            Some(path.to_owned()),
            Some(line),
            Some(1),
        )
    });
    ensure!(told.iter().map(about).eq(expected), "{shown}");
    let message = told[0]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("needs `trust`"), "{shown}");

    let good = WRONG.replace("accept-proxy = true\nheader-timeout = \"1s\"\n", "");
    let output = check(lab, &good, &["--json"])?;
    ensure!(
        output.status.success() && output.stdout == b"[]\n",
        "{}",
        show(&output)
    );
    Ok(())
}

fn no_file(lab: &Lab) -> Result<()> {
    let missing = lab.path().join("missing.toml").display().to_string();
    let output = limpid(&["check", &missing])?;
    let shown = show(&output);
    ensure!(
        output.status.code() == Some(1) && shown.contains("missing.toml"),
        "{shown}"
    );
    let output = limpid(&["check", &missing, "--json"])?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        output.status.code() == Some(1) && told[0]["severity"] == "error",
        "{told}"
    );
    let output = limpid(&["check"])?;
    ensure!(
        output.status.code() == Some(2) && show(&output).contains("FILE"),
        "{}",
        show(&output)
    );
    let binary = lab.path().join("binary.toml");
    std::fs::write(&binary, b"a = \"\xff\xfe\0\"")?;
    let output = limpid(&["check", &binary.display().to_string()])?;
    let shown = show(&output);
    ensure!(
        output.status.code() == Some(1) && shown.contains("UTF-8"),
        "{shown}"
    );
    Ok(())
}

fn schema() -> Result<Value> {
    let output = limpid(&["check", "--schema"])?;
    ensure!(output.status.success(), "{}", show(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn schema_in_docs() -> Result<()> {
    let output = limpid(&["check", "--schema"])?;
    ensure!(output.status.success(), "{}", show(&output));
    ensure!(
        output.stdout == page("limpid.schema.json")?.as_bytes(),
        "docs/limpid.schema.json is another: limpid check --schema > docs/limpid.schema.json"
    );
    Ok(())
}

/// The keys of a table in the schema, each with its default where it has one.
fn keys(schema: &Value, table: &str) -> Result<BTreeMap<String, Option<Value>>> {
    let definition = &schema["definitions"][table];
    // That of a server is a string, or else a table.
    let definition = definition["anyOf"].get(1).unwrap_or(definition);
    let keys = definition["properties"].as_object();
    let keys = keys.with_context(|| format!("no {table}"))?.iter();
    Ok(keys
        .map(|(key, about)| (key.clone(), about.get("default").cloned()))
        .collect())
}

/// As it is, and with every key that is only shown: valid, with each key of the schema, and with the
/// defaults where it says so.
fn example(lab: &Lab) -> Result<()> {
    let text = page("limpid.toml")?;
    let (mut whole, mut shown_only) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        let key = line.strip_prefix('#');
        let key = key.filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some((name, _)) = key.and_then(|key| key.split_once(" = ")) {
            shown_only.insert(name.to_owned());
        }
        whole.push_str(key.unwrap_or(line));
        whole.push('\n');
    }
    for text in [&text, &whole] {
        let output = check(lab, text, &[])?;
        let shown = show(&output);
        ensure!(
            output.status.success() && output.stderr.is_empty(),
            "{shown}"
        );
    }

    let schema = schema()?;
    let file: Table = whole.parse()?;
    let table = |of: &str, name: &str| {
        let of = file[of].as_table().context("no table")?;
        ensure!(of.len() == 1, "a key is to be shown once");
        of[name].as_table().context("no table")
    };
    let pool = table("pools", "game")?;
    let mut server = Table::new();
    for one in pool["upstream"].as_array().context("no list")? {
        server.extend(one.as_table().cloned().unwrap_or_default());
    }
    for (name, table) in [
        ("Daemon", file["daemon"].as_table().context("no table")?),
        ("Listener", table("listeners", "game")?),
        ("Pool", pool),
        ("Server", &server),
    ] {
        let keys = keys(&schema, name)?;
        let there: BTreeSet<&String> = table.keys().collect();
        ensure!(
            keys.keys().collect::<BTreeSet<_>>() == there,
            "{name}: {there:?}"
        );
        for (key, default) in keys.into_iter().filter(|(key, _)| shown_only.contains(key)) {
            let value = serde_json::to_value(&table[&key])?;
            // An empty list and what is not there have no value to show.
            if let Some(default) = default.filter(|default| *default != Value::Array(Vec::new())) {
                ensure!(
                    value == default,
                    "{key}: {value} is not the default, {default}"
                );
            }
        }
    }
    Ok(())
}

/// The code blocks of a page that are of a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(named) if !open && named == language => {
                blocks.push(String::new());
                open = true;
            }
            Some(_) => open = false,
            None if open => {
                if let Some(block) = blocks.last_mut() {
                    block.push_str(line);
                    block.push('\n');
                }
            }
            None => {}
        }
    }
    blocks
}

/// Whole files, without so much as a warning.
fn pages(lab: &Lab) -> Result<()> {
    for (name, count) in [
        ("configuration.md", 2),
        ("from-haproxy.md", 2),
        ("../README.md", 1),
    ] {
        let files = blocks(&page(name)?, "toml");
        ensure!(files.len() == count, "{name} has {} files", files.len());
        for file in files {
            let output = check(lab, &file, &[])?;
            let shown = show(&output);
            ensure!(
                output.status.success() && output.stderr.is_empty(),
                "{name}: {shown}\n{file}"
            );
        }
    }
    Ok(())
}

fn haproxy(lab: &Lab) -> Result<()> {
    let files = blocks(&page("from-haproxy.md")?, "haproxy");
    ensure!(files.len() == 2, "{} files", files.len());
    for file in files {
        let path = lab.path().join("haproxy.cfg");
        std::fs::write(&path, &file)?;
        let mut haproxy = Command::new("/usr/sbin/haproxy");
        let output = haproxy.arg("-c").arg("-f").arg(&path).output()?;
        let shown = show(&output);
        ensure!(
            output.status.success() && !shown.contains("[WARNING]"),
            "{shown}\n{file}"
        );
    }
    Ok(())
}
