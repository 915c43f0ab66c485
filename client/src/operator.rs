//! The client of people's programs: the REST interface with an API token.

use anyhow::{Context, ensure};
use http_body_util::Full;
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    header::AUTHORIZATION,
};
use serde::{Serialize, de::DeserializeOwned};
use wattle_wire::{admin::Page, secret::Secret};

use crate::{
    error::{RequestError, refused},
    http::{self, HttpClient, Trusted},
};

/// Items of a page.
const PAGE: usize = 250;
/// The longest answer, in bytes: a page of 250 nodes with the longest admissions and 64 held peers
/// each is shorter.
const LONGEST_ANSWER: usize = 16 << 20;

/// A coordinator's REST interface, for whoever holds an API token.
#[derive(Clone, Debug)]
pub struct OperatorClient {
    client: HttpClient,
    url: String,
    token: Option<Secret>,
}

impl OperatorClient {
    /// A client of the coordinator at a URL. Its certificate has to be of `authority`, in PEM; of
    /// one that the host trusts where that is `None`. Without a token it asks what anybody may.
    ///
    /// # Errors
    ///
    /// When the authority is no certificate, or this host trusts none.
    pub fn new(url: &str, token: Option<Secret>, authority: Option<&[u8]>) -> anyhow::Result<Self> {
        let trusted = match authority {
            Some(authority) => Trusted::Authority(authority),
            None if url.starts_with("https://") => Trusted::Public,
            None => Trusted::Nobody,
        };
        let tls = trusted.client_config().with_context(|| match authority {
            Some(_) => "the coordinator's authority is no certificate",
            None => "this host trusts no certificate authority",
        })?;
        Ok(Self {
            client: HttpClient::new(tls),
            url: url.trim_end_matches('/').to_owned(),
            token,
        })
    }

    /// What is at a path.
    ///
    /// # Errors
    ///
    /// When the coordinator cannot be reached, refuses, or answers with something else.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// All pages of a list, of at most so many items.
    ///
    /// # Errors
    ///
    /// As of [`OperatorClient::get`], and when there are more.
    pub async fn all<T: DeserializeOwned>(
        &self,
        path: &str,
        most: usize,
    ) -> anyhow::Result<Vec<T>> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: Page<T> = self.get(&format!("{path}?limit={PAGE}{cursor}")).await?;
            // Whoever sends pages without items has no end of them.
            let is_more = page.next_cursor.is_some() && page.items.is_empty();
            items.extend(page.items);
            ensure!(
                items.len() <= most && !is_more,
                "{} lists more at {path} than a mesh has: {most}",
                self.url
            );
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }

    /// Asks for something, with a body where one is given; an answer without a body is read as
    /// `null`.
    ///
    /// # Errors
    ///
    /// As of [`OperatorClient::get`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let text = self.text(method, path, body).await?;
        let json = if text.is_empty() { b"null" } else { &text[..] };
        serde_json::from_slice(json).with_context(|| self.is_strange())
    }

    /// The same; the answer as it came.
    ///
    /// # Errors
    ///
    /// As of [`OperatorClient::get`].
    pub async fn text(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Bytes> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let response = self.send(method, path, body.unwrap_or_default()).await?;
        if !response.status().is_success() {
            return Err(refused(&self.url, response).await.into());
        }
        let text = http::read_bytes(response.into_body(), LONGEST_ANSWER).await;
        text.with_context(|| self.is_strange())
    }

    /// One request with any body, and whatever answer comes.
    ///
    /// # Errors
    ///
    /// When the coordinator cannot be reached, or its answer breaks off, is too long or no text.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<String>> {
        let (head, body) = self.send(method, path, body).await?.into_parts();
        let body = http::read_bytes(body, LONGEST_ANSWER).await?;
        let text = String::from_utf8(body.into()).context("the answer is no text")?;
        Ok(Response::from_parts(head, text))
    }

    fn is_strange(&self) -> String {
        format!("{} did not answer like a coordinator", self.url)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            let token = http::bearer(token.reveal().trim())?;
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body.into()));
        let request = request.with_context(|| format!("{} is no URL", self.url))?;
        let response = self.client.send(request).await;
        let url = self.url.clone();
        Ok(response.map_err(|source| RequestError::Unreachable { url, source })?)
    }
}
