//! Machines that enrol and follow, without an agent.

use std::pin::Pin;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::body::Bytes;
use chrono::Utc;
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::io::ReaderStream;
use wattle_mesh::keys::enrolment;
use wattle_wire::{
    enrol::{
        EnrolFinish, Enrolled, KeyChallenge, NODE_TOKEN_TYPE, NodeClaims, SignedStatement,
        Statement,
    },
    ids::{NodeId, Position},
    join::JoinString,
    key::{IdentityKey, WireguardKey},
    stream::StreamMessage,
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::harness::{Answer, Coordinator, SOON, send};

/// The keys of a machine.
pub(crate) struct NodeKeys {
    pub(crate) identity: Ed25519KeyPair,
    pub(crate) pkcs8: Vec<u8>,
    pub(crate) wireguard: StaticSecret,
}

/// A machine that has become a node.
pub(crate) struct Node {
    pub(crate) machine: NodeKeys,
    pub(crate) enrolled: Enrolled,
}

impl NodeKeys {
    pub(crate) fn new() -> Self {
        let identity = Ed25519KeyPair::generate().unwrap();
        let pkcs8 = identity.to_pkcs8().unwrap().as_ref().to_vec();
        Self {
            identity,
            pkcs8,
            wireguard: StaticSecret::random(),
        }
    }

    pub(crate) fn identity_key(&self) -> IdentityKey {
        let bytes: [u8; 32] = self.identity.public_key().as_ref().try_into().unwrap();
        IdentityKey::from(bytes)
    }

    pub(crate) fn wireguard_key(&self) -> WireguardKey {
        WireguardKey::try_from(PublicKey::from(&self.wireguard).to_bytes()).unwrap()
    }

    pub(crate) fn statement(&self, join: &JoinString) -> Statement {
        Statement {
            mesh: join.mesh,
            identity: self.identity_key(),
            wireguard_key: self.wireguard_key(),
            sequence: 1,
            predecessors: vec![],
            unmanaged: false,
        }
    }

    /// A proven claim to become a node.
    pub(crate) async fn finish(&self, coordinator: &Coordinator, join: &JoinString) -> EnrolFinish {
        let statement = enrolment::sign_statement(&self.statement(join), &self.identity).unwrap();
        self.finish_with(coordinator, join, statement).await
    }

    /// The same with a statement of any words.
    pub(crate) async fn finish_with(
        &self,
        coordinator: &Coordinator,
        join: &JoinString,
        statement: SignedStatement,
    ) -> EnrolFinish {
        let challenge: KeyChallenge =
            serde_json::from_value(start(coordinator, join).await.expect(200).json()).unwrap();
        let (wireguard_proof, identity_proof) = enrolment::prove(
            &challenge,
            join.token,
            &statement,
            &self.wireguard,
            &self.identity,
        );
        EnrolFinish {
            token: join.token,
            secret: join.secret.clone(),
            nonce: challenge.nonce,
            statement,
            wireguard_proof,
            identity_proof,
            agent_version: "1.2.3".to_owned(),
            endpoint: None,
        }
    }

    pub(crate) async fn try_enrol(&self, coordinator: &Coordinator, join: &JoinString) -> Answer {
        let finish = self.finish(coordinator, join).await;
        enrol(coordinator, &finish).await
    }

    pub(crate) async fn enrol(self, coordinator: &Coordinator, join: &JoinString) -> Node {
        let enrolled =
            serde_json::from_value(self.try_enrol(coordinator, join).await.expect(200).json())
                .unwrap();
        Node {
            machine: self,
            enrolled,
        }
    }

    /// A token with any claims and any header that holds EdDSA.
    pub(crate) fn sign(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_ed_der(&self.pkcs8)).unwrap()
    }
}

pub(crate) async fn start(coordinator: &Coordinator, join: &JoinString) -> Answer {
    let body = json!({"token": join.token, "secret": join.secret});
    send(
        coordinator
            .client
            .post(coordinator.url("/agent/enrol/start"))
            .json(&body),
    )
    .await
}

pub(crate) async fn enrol(coordinator: &Coordinator, finish: &EnrolFinish) -> Answer {
    send(
        coordinator
            .client
            .post(coordinator.url("/agent/enrol/finish"))
            .json(finish),
    )
    .await
}

/// The join string of a new site.
pub(crate) async fn new_site(coordinator: &Coordinator, body: Value) -> JoinString {
    let created = coordinator.post("/sites", body).await.expect(201).json();
    created["join_token"]["join_string"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// A new site with a gateway.
pub(crate) async fn new_node(coordinator: &Coordinator, body: Value) -> Node {
    let join = new_site(coordinator, body).await;
    NodeKeys::new().enrol(coordinator, &join).await
}

pub(crate) fn node_header() -> Header {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(NODE_TOKEN_TYPE.to_owned());
    header
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        self.enrolled.node
    }

    pub(crate) fn claims(&self) -> NodeClaims {
        let now = Utc::now().timestamp();
        let (id, generation) = (self.id(), self.enrolled.generation);
        NodeClaims {
            iss: id,
            sub: id,
            aud: self.enrolled.mesh,
            iat: now,
            exp: now + 300,
            generation,
        }
    }

    pub(crate) fn token(&self) -> String {
        self.machine.sign(
            &node_header(),
            &serde_json::to_value(self.claims()).unwrap(),
        )
    }

    pub(crate) fn request(
        &self,
        coordinator: &Coordinator,
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        coordinator
            .client
            .request(method, coordinator.url(path))
            .bearer_auth(self.token())
    }

    /// Reports, and sees to it that what is taken is in the database.
    pub(crate) async fn report(&self, coordinator: &Coordinator, body: Value) -> Answer {
        let answer = self.report_only(coordinator, body).await;
        coordinator.write_reports().await;
        answer
    }

    /// Reports; what is taken is on its way to the database.
    pub(crate) async fn report_only(&self, coordinator: &Coordinator, body: Value) -> Answer {
        let report = self.request(coordinator, Method::POST, "/agent/report");
        send(report.json(&body)).await
    }

    pub(crate) async fn follow(
        &self,
        coordinator: &Coordinator,
        since: Option<Position>,
    ) -> Follower {
        let path = since.map_or_else(
            || "/agent/stream".to_owned(),
            |since| format!("/agent/stream?since={since}"),
        );
        let response = self
            .request(coordinator, Method::GET, &path)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Follower::of(response.bytes_stream())
    }

    /// The same over a connection for which the kernels keep little that was not read.
    pub(crate) async fn follow_slowly(
        &self,
        coordinator: &Coordinator,
        since: Position,
    ) -> Follower {
        let mut connection = coordinator.connect_with_little_room().await;
        let token = self.token();
        let request = format!(
            "GET /agent/stream?since={since} HTTP/1.1\r\nhost: localhost\r\n\
             authorization: Bearer {token}\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        // The head and the lengths of chunks are no fields of an event.
        Follower::of(ReaderStream::new(connection))
    }
}

/// An open stream.
pub(crate) struct Follower(Pin<Box<dyn Stream<Item = StreamMessage>>>);

impl Follower {
    fn of<E: std::error::Error + 'static>(
        bytes: impl Stream<Item = Result<Bytes, E>> + 'static,
    ) -> Self {
        let events = bytes.eventsource();
        Self(Box::pin(events.map(|event| {
            serde_json::from_str(&event.unwrap().data).unwrap()
        })))
    }

    /// The next message; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<StreamMessage> {
        timeout(SOON, self.0.next()).await.expect("no message")
    }

    /// The next message that is not just a sign of life.
    pub(crate) async fn news(&mut self) -> Option<StreamMessage> {
        loop {
            match self.next().await {
                Some(StreamMessage::Heartbeat { .. }) => {}
                message => return message,
            }
        }
    }
}
