//! `key=value` pairs: values that are not one plain word stand in quotes, with Go's escapes.

use std::fmt::Write as _;

use super::line::Line;
use super::time;

pub(super) fn format(line: &Line<'_>) -> String {
    let level = line.level().as_str().to_ascii_lowercase();
    let mut text = format!("time={} level={level}", time::rfc3339(line.time));
    for (key, value) in line.fields() {
        text.push(' ');
        text.push_str(key);
        text.push('=');
        push(&mut text, &value.to_string());
    }
    text
}

fn push(text: &mut String, value: &str) {
    let plain = |c: char| !matches!(c, '"' | '=' | '\\') && !c.is_whitespace() && !c.is_control();
    if !value.is_empty() && value.chars().all(plain) {
        return text.push_str(value);
    }
    text.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            // Into memory: nothing can fail.
            c if c.is_control() => _ = write!(text, "\\u{:04x}", u32::from(c)),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::push;

    #[test]
    fn only_plain_words_stand_without_quotes() {
        for (value, written) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("a=b", r#""a=b""#),
            ("say \"no\"\\", r#""say \"no\"\\""#),
            ("a\nb\u{1b}", r#""a\nb\u001b""#),
        ] {
            let mut text = String::new();
            push(&mut text, value);
            assert_eq!(text, written);
        }
    }
}
