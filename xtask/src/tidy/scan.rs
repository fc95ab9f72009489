//! A small scanner of Rust source: tells code from comments and literals, no more.

/// The source with comments, and what stands within string and character literals, replaced by blanks. Lines stay.
#[must_use]
pub(super) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes.get(i + 1) == Some(&b'/') => line_end(bytes, i),
            b'/' if bytes.get(i + 1) == Some(&b'*') => block_end(bytes, i),
            b'"' => string_end(bytes, i),
            b'r' | b'b' | b'c' if !follows_name(bytes, i) => match raw_end(bytes, i) {
                Some(end) => end,
                None => i,
            },
            b'\'' => char_end(bytes, i),
            _ => i,
        };
        if end == i {
            i += 1;
            continue;
        }
        for b in &mut out[i..end] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
        i = end;
    }
    String::from_utf8(out).unwrap_or_default()
}

fn follows_name(bytes: &[u8], i: usize) -> bool {
    i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_')
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| from + n)
}

/// Block comments nest.
fn block_end(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0_usize;
    let mut i = from;
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut i = from + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// The end of `r"…"`, `r#"…"#`, `br"…"` and their like; `None` where it is another word.
fn raw_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut i = from;
    if matches!(bytes[i], b'b' | b'c') {
        i += 1;
    }
    if bytes.get(i) != Some(&b'r') {
        return None;
    }
    i += 1;
    let hashes = bytes[i..].iter().take_while(|b| **b == b'#').count();
    i += hashes;
    if bytes.get(i) != Some(&b'"') {
        return None;
    }
    i += 1;
    while i < bytes.len() {
        if bytes[i] == b'"' && bytes[i + 1..].iter().take_while(|b| **b == b'#').count() >= hashes {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(bytes.len())
}

/// The end of a character literal; a lifetime is none and ends where it begins.
fn char_end(bytes: &[u8], from: usize) -> usize {
    match bytes.get(from + 1) {
        Some(b'\\') => {
            let mut i = from + 3;
            while i < bytes.len() && bytes[i] != b'\'' {
                i += 1;
            }
            (i + 1).min(bytes.len())
        }
        Some(first) => {
            // A character takes one to four bytes.
            let width = match first {
                0xF0.. => 4,
                0xE0.. => 3,
                0xC0.. => 2,
                _ => 1,
            };
            if bytes.get(from + 1 + width) == Some(&b'\'') { from + 2 + width } else { from }
        }
        None => from,
    }
}

/// Line numbers (from 1) at which `word` stands in the code as a word of its own.
pub(super) fn lines_with_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.lines().enumerate().filter(move |(_, line)| has_word(line, word)).map(|(n, _)| n + 1)
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let source = concat!(
            "// unsafe one\n",
            "let a = \"unsafe \\\" two\"; /* unsafe /* three */ unsafe */ let b = 'x';\n",
            "let c = r#\"unsafe \" four\"#; fn f<'a>(x: &'a str) {} let d = '\\''; unsafe { five() }\n",
        );
        let code = code_only(source);
        assert_eq!(code.lines().count(), 3);
        assert_eq!(lines_with_word(&code, "unsafe").collect::<Vec<_>>(), [3]);
        assert!(code.contains("fn f<'a>(x: &'a str)") && code.contains("five()"));
    }

    #[test]
    fn a_word_is_not_part_of_another() {
        let code = "unsafe_code unsafer not_unsafe\nunsafe{}";
        assert_eq!(lines_with_word(code, "unsafe").collect::<Vec<_>>(), [2]);
    }
}
