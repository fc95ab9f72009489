//! Asking a node: one authenticated connection as an administrator, questions, answers in JSON.
//!
//! Owns where the node and the key are looked for, and the messages for a node that is not there, is not ours, or refuses.

use crate::args::{CLIENT_KEY, CLUSTER_KEY, Remote, SERVER};
use crate::failure::Failure;
use node::config::DEFAULT_PORT;
use serde_json::Value;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};
use transport::{
    CallOptions, CloseReason, ConnectOptions, Connection, Error, HandshakeError, Key, Reply, Session,
};
use wire::message::{Role, StatFs, StatFsReply};
use wire::{Class, ClientId, Errno, Request, Status};

/// Pause before a question is repeated that the node refused with "busy" or "grace".
const AGAIN: Duration = Duration::from_millis(50);

/// The key file of a command: option, environment, the places where one is kept.
pub(crate) fn key_file(given: Option<&Path>) -> PathBuf {
    key_file_from(given, std::env::var_os("CLAUDEFS_KEY"), Path::exists)
}

fn key_file_from(given: Option<&Path>, environment: Option<OsString>, exists: fn(&Path) -> bool) -> PathBuf {
    let environment = environment.filter(|v| !v.is_empty()).map(PathBuf::from);
    given.map(Path::to_owned).or(environment).unwrap_or_else(|| {
        let client = Path::new(CLIENT_KEY);
        if exists(client) { client.to_owned() } else { CLUSTER_KEY.into() }
    })
}

/// Host and port of `HOST`, `HOST:PORT`, `ADDRESS`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn host_port(text: &str) -> Result<(&str, u16), Failure> {
    let wrong = || {
        Failure::Usage(format!(
            "`{text}` is not HOST[:PORT]; for example `storage1`, `10.0.0.1:7420`, `[::1]:7420`"
        ))
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(wrong()),
        }
    } else {
        match text.split_once(':') {
            // More than one colon: a bare IPv6 address.
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port.map(str::parse) {
        None => DEFAULT_PORT,
        Some(Ok(port)) if port != 0 => port,
        Some(_) => return Err(wrong()),
    };
    if host.is_empty() { Err(wrong()) } else { Ok((host, port)) }
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|e| {
            Failure::Server(format!("can't find host {host}: {e}; check the name, or give an address"))
        })?
        .collect();
    if found.is_empty() { Err(Failure::Server(format!("host {host} has no address"))) } else { Ok(found) }
}

/// Whom a command asks, looked up and ready to connect.
pub(crate) struct Target {
    name: String,
    addresses: Vec<SocketAddr>,
    key: Key,
    client: ClientId,
    timeout: Duration,
}

impl Target {
    pub(crate) fn new(remote: &Remote) -> Result<Self, Failure> {
        let environment = std::env::var("CLAUDEFS_SERVER").ok().filter(|v| !v.is_empty());
        let name = remote.server.clone().or(environment).unwrap_or_else(|| SERVER.to_owned());
        let (host, port) = host_port(&name)?;
        let addresses = resolve(host, port)?;
        let key = Key::load(&key_file(remote.key.as_deref()))?;
        let id = getrandom::u64().map_err(|e| Failure::Other(format!("no random bytes: {e}")))?;
        let timeout = Duration::from_secs(u64::from(remote.timeout));
        // Zero names nobody.
        Ok(Self { name, addresses, key, client: ClientId(id.max(1)), timeout })
    }

    /// What the operator called it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn options(&self, address: SocketAddr) -> ConnectOptions {
        let (key, client) = (self.key.clone(), self.client);
        ConnectOptions { address, key, role: Role::Admin, client, arena: None, payload_crc: false }
    }

    /// Connects to the first address that answers.
    pub(crate) async fn connect(&self) -> Result<Node<'_>, Failure> {
        let mut last = None;
        for &address in &self.addresses {
            let options = self.options(address);
            match reactor::timeout(self.timeout, Connection::connect(&options)).await {
                Ok(Ok((connection, _))) => return Ok(Node { target: self, address, connection }),
                Ok(Err(e)) => last = Some((address, e)),
                Err(_) => last = Some((address, Error::Deadline)),
            }
        }
        Err(last.map_or_else(|| Failure::Server("no address".to_owned()), |(a, e)| explain(a, &e)))
    }
}

/// Says what a failed connection or call means and what to do about it.
fn explain(address: SocketAddr, error: &Error) -> Failure {
    let start = "start it there with `systemctl start claudefsd`, or name another node with --server";
    match error {
        Error::Connect(e) if e.kind() == ErrorKind::ConnectionRefused => {
            Failure::Server(format!("no claudefsd listens on {address} (connection refused); {start}"))
        }
        Error::Connect(e) => Failure::Server(format!(
            "{address} can't be reached: {e}; check the address and the network between"
        )),
        Error::Deadline => Failure::Server(format!(
            "{address} did not answer in time; look at its log (`journalctl -u claudefsd`), or wait longer with --timeout"
        )),
        Error::Closed(CloseReason::Handshake(e)) => match e {
            HandshakeError::KeyRefused { .. } | HandshakeError::ServerProof { .. } => {
                Failure::Key(format!("{address}: {e} (give it with --key FILE)"))
            }
            HandshakeError::Protocol(_) => Failure::Server(format!(
                "{address} is no claudefsd: {e}; check the port, 7420 is the default"
            )),
            _ => Failure::Server(format!("{address}: {e}")),
        },
        Error::Closed(CloseReason::Frame(e)) => {
            Failure::Server(format!("{address} is no claudefsd: {e}; check the port, 7420 is the default"))
        }
        e => Failure::Server(format!("{address}: {e}; look at its log (`journalctl -u claudefsd`)")),
    }
}

/// A node that answered.
pub(crate) struct Node<'a> {
    target: &'a Target,
    address: SocketAddr,
    connection: Connection,
}

impl Node<'_> {
    /// Asks for a report.
    pub(crate) async fn ask(&self, request: impl Into<Request<'_>>) -> Result<Value, Failure> {
        let request = request.into();
        let reply = self.call(&request, Some(self.target.timeout)).await?;
        self.document(&request, &reply)
    }

    /// Gives an order that may take as long as it likes.
    pub(crate) async fn order(&self, request: impl Into<Request<'_>>) -> Result<Value, Failure> {
        let request = request.into();
        if request.opcode().class() != Class::Once {
            let reply = self.call(&request, None).await?;
            return self.document(&request, &reply);
        }
        // What must happen once needs a slot, which a session has.
        let hook = Box::new(|_| Box::pin(async { Ok(()) }) as Pin<Box<dyn Future<Output = _>>>);
        let unasked = Box::new(|_| Box::pin(async {}) as Pin<Box<dyn Future<Output = ()>>>);
        let failed = |e: Error| explain(self.address, &e);
        let session =
            Session::connect(self.target.options(self.address), hook, unasked).await.map_err(failed)?;
        let reply =
            session.call(&request, transport::Parts::new(), CallOptions::default()).await.map_err(failed)?;
        session.stop();
        self.document(&request, &reply)
    }

    /// Totals of the file system, as statfs(2) on a mount has them.
    pub(crate) async fn stat_fs(&self) -> Result<wire::StatFs, Failure> {
        let request = StatFs {}.into();
        let reply = self.call(&request, Some(self.target.timeout)).await?;
        if reply.status() != Status::Ok {
            return Err(self.refused(&request, reply.status()));
        }
        let wrong = |e| Failure::Server(format!("{}: its answer is malformed: {e}", self.address));
        Ok(reply.decode::<StatFsReply>().map_err(wrong)?.stat)
    }

    /// One request; waits while the node is too busy for it.
    async fn call(&self, request: &Request<'_>, deadline: Option<Duration>) -> Result<Reply, Failure> {
        let until = Instant::now() + self.target.timeout;
        loop {
            let call = CallOptions { deadline, ..CallOptions::default() };
            let reply = self.connection.call(request, call).await.map_err(|e| explain(self.address, &e))?;
            let again = matches!(reply.status(), Status::Grace)
                || reply.status() == Status::Busy
                    && !matches!(request, Request::Scrub(_) | Request::Preallocate(_));
            if !again || Instant::now() >= until {
                return Ok(reply);
            }
            reactor::sleep(AGAIN).await;
        }
    }

    fn document(&self, request: &Request<'_>, reply: &Reply) -> Result<Value, Failure> {
        match reply.status() {
            Status::Ok => serde_json::from_slice(&reply.payload)
                .map_err(|e| Failure::Server(format!("{}: its report is no JSON: {e}", self.address))),
            status => Err(self.refused(request, status)),
        }
    }

    fn refused(&self, request: &Request<'_>, status: Status) -> Failure {
        let (address, what) = (self.address, request.opcode().name());
        let log = "its log says why (`journalctl -u claudefsd`)";
        match status {
            Status::Busy if matches!(request, Request::Scrub(_)) => Failure::Refused(format!(
                "a scrub runs already on {address}: follow it with `claudefs scrub --status --wait`, end it with --stop"
            )),
            Status::Busy if matches!(request, Request::Preallocate(_)) => Failure::Refused(format!(
                "a preallocation runs already on {address}: `claudefs device list --json` shows how far it is"
            )),
            Status::Errno(Errno::ENOSPC) if matches!(request, Request::Preallocate(_)) => {
                Failure::Refused(format!(
                    "{address}: the file system that holds the device is full, what could be reserved is; free space there, \
                     then run this again"
                ))
            }
            Status::Errno(Errno::EOPNOTSUPP) if matches!(request, Request::Preallocate(_)) => {
                Failure::Refused(format!(
                    "{address}: the file system that holds the device can't reserve blocks; format another with --preallocate"
                ))
            }
            Status::Cancelled if matches!(request, Request::Preallocate(_)) => Failure::Refused(format!(
                "the node on {address} is stopping: what was reserved stays; run this again when it is back"
            )),
            Status::Busy | Status::Grace => Failure::Refused(format!(
                "{address} can't do that now ({status:?}): try again in a few seconds"
            )),
            Status::Denied => Failure::Key(format!("{address} does not let this key do that ({what})")),
            Status::Unsupported => Failure::Refused(format!(
                "claudefsd on {address} can't do that ({what}): its version does not support it"
            )),
            Status::Errno(e) => Failure::Refused(format!("{address} refuses ({what}): {e}; {log}")),
            other => Failure::Refused(format!("{address} refuses ({what}, {other:?}); {log}")),
        }
    }
}

/// Runs what asks nodes.
pub(crate) fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    reactor::probe()?;
    let config = reactor::Config {
        name: "claudefs".into(),
        entries: 32,
        wait: reactor::Wait::Sleep,
        ..reactor::Config::default()
    };
    reactor::run(config, work)?
}

/// One question to one node.
pub(crate) fn ask(remote: &Remote, request: impl Into<Request<'static>>) -> Result<Value, Failure> {
    let target = Target::new(remote)?;
    run(async { target.connect().await?.ask(request).await })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_with_and_without_port() {
        for (text, host, port) in [
            ("storage1", "storage1", 7420),
            ("10.0.0.1:99", "10.0.0.1", 99),
            ("[::1]:99", "::1", 99),
            ("[::1]", "::1", 7420),
            ("2001:db8::1", "2001:db8::1", 7420),
        ] {
            assert_eq!(host_port(text).expect(text), (host, port));
        }
        for bad in ["", ":7420", "h:", "h:0", "h:65536", "h:x", "[::1", "[::1]x", "[]:1"] {
            let error = host_port(bad).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn the_key_is_looked_for_in_order() {
        let yes: fn(&Path) -> bool = |_| true;
        let no: fn(&Path) -> bool = |_| false;
        let env = || Some(OsString::from("/e"));
        assert_eq!(key_file_from(Some(Path::new("/o")), env(), yes), Path::new("/o"));
        assert_eq!(key_file_from(None, env(), yes), Path::new("/e"));
        assert_eq!(key_file_from(None, Some(OsString::new()), yes), Path::new(CLIENT_KEY));
        assert_eq!(key_file_from(None, None, no), Path::new(CLUSTER_KEY));
    }

    #[test]
    fn every_refusal_has_its_exit_code_and_a_way_out() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7420));
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        let failure = explain(address, &Error::Connect(std::rc::Rc::new(refused)));
        assert_eq!(failure.exit_code(), 4);
        assert!(failure.to_string().contains("systemctl start claudefsd"), "{failure}");
        let key = HandshakeError::KeyRefused { id: "ab".into() };
        assert_eq!(explain(address, &Error::Closed(CloseReason::Handshake(key))).exit_code(), 5);
        let other = HandshakeError::Protocol("x");
        let failure = explain(address, &Error::Closed(CloseReason::Handshake(other)));
        assert!(failure.to_string().contains("no claudefsd"), "{failure}");
        assert_eq!(explain(address, &Error::Deadline).exit_code(), 4);
    }
}
