//! `HOST[:PORT]:/PATH`.

use std::fmt;

/// What is to be mounted from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name or address; an IPv6 address stands in brackets in the text and without them here.
    pub host: String,
    /// Port, where given.
    pub port: Option<u16>,
    /// Absolute path of the directory that becomes the root.
    pub path: String,
}

/// A source that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not HOST[:PORT]:/PATH ({why}); for example `storage1:/` or `[2001:db8::1]:7420:/home`")]
pub struct SourceError {
    text: String,
    why: &'static str,
}

impl std::str::FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let bad = |why| SourceError { text: text.to_owned(), why };
        let (place, path) = text.split_once(":/").ok_or_else(|| bad("it has no `:/`"))?;
        let (host, port) = if let Some(rest) = place.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| bad("a bracket is open"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(bad("something follows the bracket")),
            }
        } else {
            match place.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(bad("an IPv6 address needs brackets")),
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            }
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(bad("the host is missing"));
        }
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port)) if port != 0 => Some(port),
            Some(_) => return Err(bad("the port is no number from 1 to 65535")),
        };
        let parts = path.split('/').filter(|p| !p.is_empty() && *p != ".");
        let mut clean = String::new();
        for part in parts {
            if part == ".." {
                return Err(bad("`..` in the path"));
            }
            clean.push('/');
            clean.push_str(part);
        }
        if clean.is_empty() {
            clean.push('/');
        }
        Ok(Self { host: host.to_owned(), port, path: clean })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, ":{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written() {
        for (text, host, port, path) in [
            ("storage1:/", "storage1", None, "/"),
            ("10.0.0.1:7420:/a//b/./c/", "10.0.0.1", Some(7420), "/a/b/c"),
            ("[::1]:/x", "::1", None, "/x"),
            ("[2001:db8::1]:99:/", "2001:db8::1", Some(99), "/"),
        ] {
            let source: Source = text.parse().expect("good");
            assert_eq!(source, Source { host: host.into(), port, path: path.into() });
            assert_eq!(source.to_string().parse::<Source>().expect("its own text"), source);
        }
    }

    #[test]
    fn what_is_no_source_says_why() {
        for text in
            ["", "host", "host:path", ":/", "h:0:/", "h:x:/", "::1:/", "[::1/", "[::1]x:/", "h:/a/../b"]
        {
            let error = text.parse::<Source>().expect_err(text);
            assert!(error.to_string().contains("HOST[:PORT]:/PATH"), "{error}");
        }
    }
}
