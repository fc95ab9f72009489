//! Both sides of the handshake as state machines: frames in, steps out. `docs/wire.md` has the drawing.
//!
//! Both prove the key over everything said before, each under its own label: a proof can't be reflected (labels),
//! replayed (both nonces), carried to another peer (both identities) or used for another version. Must not do
//! I/O, read a clock or make random bytes: the caller gives nonces.

use crate::key::{Key, hex};
use wire::limits::{MAX_HANDSHAKE_BODY, VERSIONS};
use wire::message::{Challenge, Hello, Prove, Refusal, RefusalReason, Role, Welcome};
use wire::{Body, BodyBuf, ClientId, Flags, HANDSHAKE_VERSION, Header, Opcode, Status};

const SERVER: &[u8; 16] = b"claudefs server\0";
const CLIENT: &[u8; 16] = b"claudefs client\0";

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The server refuses the key. Permanent until the operator acts.
    #[error("the server refuses key {id}: it is not the server's key; copy the key file from the node")]
    KeyRefused {
        /// Fingerprint of our key.
        id: String,
    },
    /// The server could not prove the key: it is not ours. Permanent until the operator acts.
    #[error("the server can't prove key {id}: this is another cluster's server; check address and key file")]
    ServerProof {
        /// Fingerprint of our key.
        id: String,
    },
    /// A client did not prove a key that we know. Its message stays on our side.
    #[error("the peer does not hold the key it names ({id}); give it this cluster's key file")]
    ClientProof {
        /// Fingerprint that it named.
        id: String,
    },
    /// No common version. Permanent until one side is upgraded.
    #[error("no common protocol version: this side speaks {} to {}, the peer {low} to {high}; upgrade the older side",
        ours.0, ours.1)]
    Version {
        /// Versions of this side.
        ours: (u8, u8),
        /// The peer's lowest.
        low: u8,
        /// The peer's highest.
        high: u8,
    },
    /// The server has no room or is going down: try again later.
    #[error("the server takes no connections now ({0:?})")]
    NotNow(RefusalReason),
    /// The peer does not keep to the protocol.
    #[error("handshake: {0}")]
    Protocol(&'static str),
}

impl HandshakeError {
    /// Whether trying again can't help until somebody acts.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        matches!(self, Self::KeyRefused { .. } | Self::ServerProof { .. } | Self::Version { .. })
    }
}

fn frame<'a>(header: Header, body: &impl Body<'a>) -> (Vec<u8>, Vec<u8>) {
    let mut out = BodyBuf::new();
    body.encode(&mut out);
    let bytes = out.body().to_vec();
    // Handshake bodies are of fixed size and far below the limit.
    let frame = out.into_frame(&Header { version: HANDSHAKE_VERSION, ..header }).unwrap_or_default();
    (frame, bytes)
}

/// Whether a frame may belong to a handshake at all: small, without payload, of the frozen version.
///
/// # Errors
/// The reason. Checked before anything is received beyond the header.
pub fn admit(header: &Header) -> Result<(), HandshakeError> {
    if header.version != HANDSHAKE_VERSION {
        return Err(HandshakeError::Protocol("the first frames must be those of the handshake"));
    }
    if usize::from(header.body_len) > MAX_HANDSHAKE_BODY || header.payload_len != 0 {
        return Err(HandshakeError::Protocol("frame is too long"));
    }
    Ok(())
}

/// What the client has agreed on with its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Protocol version of all frames from now on.
    pub version: u8,
    /// The server's lasting identity.
    pub server_uuid: [u8; 16],
    /// The terms.
    pub welcome: Welcome,
}

/// What the client does next.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Send this frame and go on.
    Send(Vec<u8>),
    /// The connection stands.
    Done(Agreed),
}

/// The client's side.
pub struct ClientHandshake {
    key: Key,
    hello: Vec<u8>,
    versions: (u8, u8),
    challenge: Option<Challenge>,
}

impl ClientHandshake {
    /// Begins; the second value is the frame to send. `nonce` must be fresh random bytes.
    #[must_use]
    pub fn new(key: &Key, role: Role, client: ClientId, nonce: [u8; 32]) -> (Self, Vec<u8>) {
        Self::with_versions(key, role, client, nonce, VERSIONS)
    }

    fn with_versions(
        key: &Key,
        role: Role,
        client: ClientId,
        nonce: [u8; 32],
        versions: (u8, u8),
    ) -> (Self, Vec<u8>) {
        let hello =
            Hello { min_version: versions.0, max_version: versions.1, role, key_id: key.id(), client, nonce };
        let (frame, hello) = frame(Header { client, ..Header::request(Opcode::Hello) }, &hello);
        (Self { key: key.clone(), hello, versions, challenge: None }, frame)
    }

    /// Takes the server's next frame.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub fn on_frame(&mut self, header: &Header, body: &[u8]) -> Result<ClientStep, HandshakeError> {
        admit(header)?;
        if !header.flags.has(Flags::REPLY) {
            return Err(HandshakeError::Protocol("the server sent a request"));
        }
        if header.status != Status::Ok {
            return Err(self.refused(body));
        }
        let malformed = |_| HandshakeError::Protocol("the server's frame is malformed");
        match (header.op(), self.challenge) {
            (Some(Opcode::Hello), None) => {
                self.on_challenge(body, Challenge::decode(body).map_err(malformed)?)
            }
            (Some(Opcode::Prove), Some(challenge)) => Ok(ClientStep::Done(Agreed {
                version: challenge.version,
                server_uuid: challenge.server_uuid,
                welcome: Welcome::decode(body).map_err(malformed)?,
            })),
            _ => Err(HandshakeError::Protocol("the server's frame is out of order")),
        }
    }

    fn on_challenge(&mut self, body: &[u8], challenge: Challenge) -> Result<ClientStep, HandshakeError> {
        let (_, unproved) = frame(Header::request(Opcode::Hello), &Challenge { proof: [0; 32], ..challenge });
        if !self.key.verify(SERVER, &[&self.hello, &unproved], &challenge.proof) {
            return Err(HandshakeError::ServerProof { id: hex(&self.key.id()) });
        }
        if !(self.versions.0..=self.versions.1).contains(&challenge.version) {
            return Err(HandshakeError::Protocol("the server chose a version that was not offered"));
        }
        self.challenge = Some(challenge);
        let proof = self.key.mac(CLIENT, &[&self.hello, body]);
        Ok(ClientStep::Send(frame(Header::request(Opcode::Prove), &Prove { proof }).0))
    }

    fn refused(&self, body: &[u8]) -> HandshakeError {
        match Refusal::decode(body) {
            Ok(r) => match r.reason {
                RefusalReason::Key => HandshakeError::KeyRefused { id: hex(&self.key.id()) },
                RefusalReason::Version => {
                    HandshakeError::Version { ours: self.versions, low: r.min_version, high: r.max_version }
                }
                RefusalReason::Full | RefusalReason::Stopping => HandshakeError::NotNow(r.reason),
                RefusalReason::Protocol => HandshakeError::Protocol("the server refuses our frame"),
            },
            Err(_) => HandshakeError::Protocol("the server's refusal is malformed"),
        }
    }
}

/// Keys that a server accepts, each with the roles that it allows.
#[derive(Debug, Default)]
pub struct KeyRing(Vec<(Key, Vec<Role>)>);

impl KeyRing {
    /// Accepts `key` for clients and admins (node keys are separate).
    #[must_use]
    pub fn single(key: Key) -> Self {
        Self(vec![(key, vec![Role::Client, Role::Admin])])
    }
    /// Accepts one more key.
    pub fn add(&mut self, key: Key, roles: &[Role]) {
        self.0.push((key, roles.to_vec()));
    }
    fn find(&self, id: &[u8; 8], role: Role) -> Option<&Key> {
        self.0.iter().find(|(key, roles)| key.id() == *id && roles.contains(&role)).map(|(key, _)| key)
    }
}

/// Who has proved its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The session's client.
    pub client: ClientId,
    /// What it is.
    pub role: Role,
    /// Protocol version of all frames from now on.
    pub version: u8,
}

/// What the server does next.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerStep {
    /// Send this frame and go on.
    Send(Vec<u8>),
    /// Send this frame; the connection stands.
    Accept(Vec<u8>, Identity),
    /// Send this frame, log the error, close.
    Refuse(Vec<u8>, HandshakeError),
}

/// The server's side.
pub struct ServerHandshake {
    terms: Welcome,
    server_uuid: [u8; 16],
    nonce: [u8; 32],
    proving: Option<Proving>,
}

struct Proving {
    key: Key,
    hello: Vec<u8>,
    challenge: Vec<u8>,
    identity: Identity,
    key_id: [u8; 8],
}

impl ServerHandshake {
    /// Waits for Hello. `nonce` must be fresh random bytes.
    #[must_use]
    pub const fn new(terms: Welcome, server_uuid: [u8; 16], nonce: [u8; 32]) -> Self {
        Self { terms, server_uuid, nonce, proving: None }
    }

    /// Takes the client's next frame.
    pub fn on_frame(&mut self, keys: &KeyRing, header: &Header, body: &[u8]) -> ServerStep {
        if let Err(error) = admit(header) {
            return refuse(header, RefusalReason::Protocol, error);
        }
        match (header.op(), self.proving.take()) {
            (Some(Opcode::Hello), None) => self.on_hello(keys, header, body),
            (Some(Opcode::Prove), Some(proving)) => self.on_prove(&proving, header, body),
            _ => {
                let error = HandshakeError::Protocol("the client's frame is out of order");
                refuse(header, RefusalReason::Protocol, error)
            }
        }
    }

    fn on_hello(&mut self, keys: &KeyRing, header: &Header, body: &[u8]) -> ServerStep {
        let Ok(hello) = Hello::decode(body) else {
            let error = HandshakeError::Protocol("Hello is malformed");
            return refuse(header, RefusalReason::Protocol, error);
        };
        let version = hello.max_version.min(VERSIONS.1);
        if version < hello.min_version.max(VERSIONS.0) {
            let (low, high) = (hello.min_version, hello.max_version);
            let error = HandshakeError::Version { ours: VERSIONS, low, high };
            return refuse(header, RefusalReason::Version, error);
        }
        let Some(key) = keys.find(&hello.key_id, hello.role) else {
            let error = HandshakeError::ClientProof { id: hex(&hello.key_id) };
            return refuse(header, RefusalReason::Key, error);
        };
        let mut challenge = Challenge {
            version,
            nonce: self.nonce,
            proof: [0; 32],
            server_uuid: self.server_uuid,
            features: 0,
        };
        let reply = header.reply(Status::Ok);
        let (_, unproved) = frame(reply, &challenge);
        challenge.proof = key.mac(SERVER, &[body, &unproved]);
        let (out, challenge) = frame(reply, &challenge);
        let identity = Identity { client: hello.client, role: hello.role, version };
        self.proving = Some(Proving {
            key: key.clone(),
            hello: body.to_vec(),
            challenge,
            identity,
            key_id: hello.key_id,
        });
        ServerStep::Send(out)
    }

    fn on_prove(&self, proving: &Proving, header: &Header, body: &[u8]) -> ServerStep {
        let proved = Prove::decode(body)
            .is_ok_and(|m| proving.key.verify(CLIENT, &[&proving.hello, &proving.challenge], &m.proof));
        if !proved {
            let error = HandshakeError::ClientProof { id: hex(&proving.key_id) };
            return refuse(header, RefusalReason::Key, error);
        }
        ServerStep::Accept(frame(header.reply(Status::Ok), &self.terms).0, proving.identity)
    }
}

/// The refusal of `header`'s frame.
pub(crate) fn refuse(header: &Header, reason: RefusalReason, error: HandshakeError) -> ServerStep {
    let refusal = Refusal { min_version: VERSIONS.0, max_version: VERSIONS.1, reason };
    ServerStep::Refuse(frame(header.reply(Status::Denied), &refusal).0, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::HEADER_LEN;

    fn key(n: u8) -> Key {
        Key::from_bytes([n; 32])
    }
    fn terms() -> Welcome {
        Welcome {
            credits: 8,
            slots: 8,
            shards: 16,
            zero: 0,
            max_payload: 1 << 20,
            chunk_size: 1 << 20,
            lease_ms: 1000,
            keepalive_ms: 1000,
            incarnation: 1,
            boot_epoch: 3,
            fs_uuid: [4; 16],
        }
    }
    fn cut(frame: &[u8]) -> (Header, Vec<u8>) {
        let head: &[u8; HEADER_LEN] = frame.first_chunk().expect("a header");
        Header::verify(head, &frame[HEADER_LEN..]).expect("sound");
        (Header::decode(head).expect("valid"), frame[HEADER_LEN..].to_vec())
    }
    fn client(k: &Key, nonce: u8, versions: (u8, u8)) -> (ClientHandshake, (Header, Vec<u8>)) {
        let (c, f) = ClientHandshake::with_versions(k, Role::Client, ClientId(7), [nonce; 32], versions);
        (c, cut(&f))
    }
    fn server(nonce: u8) -> ServerHandshake {
        ServerHandshake::new(terms(), [9; 16], [nonce; 32])
    }
    fn sent(step: ServerStep) -> (Header, Vec<u8>) {
        match step {
            ServerStep::Send(f) | ServerStep::Accept(f, _) | ServerStep::Refuse(f, _) => cut(&f),
        }
    }
    fn prove(c: &mut ClientHandshake, challenge: &(Header, Vec<u8>)) -> (Header, Vec<u8>) {
        match c.on_frame(&challenge.0, &challenge.1).expect("the server proved itself") {
            ClientStep::Send(f) => cut(&f),
            ClientStep::Done(_) => panic!("too early"),
        }
    }

    #[test]
    fn both_agree() {
        let (ring, mut s) = (KeyRing::single(key(1)), server(2));
        let (mut c, hello) = client(&key(1), 1, VERSIONS);
        let challenge = sent(s.on_frame(&ring, &hello.0, &hello.1));
        let proof = prove(&mut c, &challenge);
        let step = s.on_frame(&ring, &proof.0, &proof.1);
        let identity = Identity { client: ClientId(7), role: Role::Client, version: 1 };
        assert!(matches!(&step, ServerStep::Accept(_, who) if *who == identity));
        let welcome = sent(step);
        let agreed = Agreed { version: 1, server_uuid: [9; 16], welcome: terms() };
        assert_eq!(c.on_frame(&welcome.0, &welcome.1), Ok(ClientStep::Done(agreed)));
    }

    #[test]
    fn a_wrong_key_is_refused_by_either_side() {
        let (mut c, hello) = client(&key(2), 1, VERSIONS);
        let refusal = sent(server(2).on_frame(&KeyRing::single(key(1)), &hello.0, &hello.1));
        let error = c.on_frame(&refusal.0, &refusal.1).expect_err("refused");
        assert!(matches!(error, HandshakeError::KeyRefused { .. }) && error.is_permanent());
        assert!(error.to_string().contains("copy the key file"));
        // A server that pretends to know the key can't prove it.
        let (mut c, hello) = client(&key(2), 1, VERSIONS);
        let (_, honest) = client(&key(1), 1, VERSIONS);
        let challenge = sent(server(2).on_frame(&KeyRing::single(key(1)), &honest.0, &honest.1));
        let error = c.on_frame(&challenge.0, &challenge.1).expect_err("no proof");
        assert!(matches!(error, HandshakeError::ServerProof { .. }));
        drop(hello);
    }

    #[test]
    fn proofs_are_good_once_and_one_way() {
        let ring = KeyRing::single(key(1));
        let (mut c, hello) = client(&key(1), 1, VERSIONS);
        let mut s = server(2);
        let challenge = sent(s.on_frame(&ring, &hello.0, &hello.1));
        let proof = prove(&mut c, &challenge);
        // Replay of the whole dialogue against a server with another nonce.
        let mut again = server(3);
        again.on_frame(&ring, &hello.0, &hello.1);
        assert!(matches!(again.on_frame(&ring, &proof.0, &proof.1), ServerStep::Refuse(..)));
        // Reflection of the server's own proof.
        let theirs = Challenge::decode(&challenge.1).expect("a challenge").proof;
        let (_, body) = frame(Header::request(Opcode::Prove), &Prove { proof: theirs });
        assert!(matches!(s.on_frame(&ring, &proof.0, &body), ServerStep::Refuse(..)));
        // A challenge replayed to another client.
        let (mut other, _) = client(&key(1), 5, VERSIONS);
        assert!(other.on_frame(&challenge.0, &challenge.1).is_err());
        // After a refusal, the right proof comes too late.
        assert!(matches!(s.on_frame(&ring, &proof.0, &proof.1), ServerStep::Refuse(..)));
    }

    #[test]
    fn any_changed_byte_of_the_dialogue_is_noticed() {
        let ring = KeyRing::single(key(1));
        let (_, hello) = client(&key(1), 1, VERSIONS);
        for at in 0..hello.1.len() {
            let (mut c, _) = client(&key(1), 1, VERSIONS);
            let mut body = hello.1.clone();
            body[at] ^= 1;
            let answer = sent(server(2).on_frame(&ring, &hello.0, &body));
            assert!(c.on_frame(&answer.0, &answer.1).is_err(), "byte {at} of Hello");
        }
        let challenge = sent(server(2).on_frame(&ring, &hello.0, &hello.1));
        for at in 0..challenge.1.len() {
            let (mut c, _) = client(&key(1), 1, VERSIONS);
            let mut body = challenge.1.clone();
            body[at] ^= 1;
            assert!(c.on_frame(&challenge.0, &body).is_err(), "byte {at} of Challenge");
        }
    }

    #[test]
    fn versions_meet_or_say_so() {
        let ring = KeyRing::single(key(1));
        let (mut c, hello) = client(&key(1), 1, (2, 9));
        let answer = sent(server(2).on_frame(&ring, &hello.0, &hello.1));
        let error = c.on_frame(&answer.0, &answer.1).expect_err("too new");
        assert_eq!(error, HandshakeError::Version { ours: (2, 9), low: 1, high: 1 });
        let (mut c, hello) = client(&key(1), 1, (1, 9));
        let answer = sent(server(2).on_frame(&ring, &hello.0, &hello.1));
        assert!(matches!(c.on_frame(&answer.0, &answer.1), Ok(ClientStep::Send(_))));
    }

    #[test]
    fn nothing_but_the_handshake_is_admitted() {
        let header = Header::request(Opcode::GetAttr);
        assert!(matches!(server(1).on_frame(&KeyRing::default(), &header, &[]), ServerStep::Refuse(..)));
        let big = Header { version: 0, body_len: 129, ..Header::request(Opcode::Hello) };
        assert!(admit(&big).is_err());
    }
}
