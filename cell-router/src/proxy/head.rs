//! The heads of requests and answers, as the other side gets them.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response, Uri, Version, header};
use titan_routing::{Epoch, Key};

use crate::body::{RequestBody, ResponseBody};
use crate::config::Protocol;
use crate::identity::{EPOCH, KEY};
use crate::inbound::Inbound;
use crate::rejection::{Reason, Rejection};
use crate::{deadline, headers, upgrade};

/// The head of a request as a cell gets it.
pub(super) struct Head<'a> {
    pub(super) parts: &'a http::request::Parts,
    pub(super) key: Option<Key>,
    pub(super) epoch: Epoch,
    pub(super) protocol: Protocol,
}

impl Head<'_> {
    pub(super) fn request(
        &self,
        body: RequestBody,
        remaining: Option<Duration>,
    ) -> Result<Request<RequestBody>, Rejection> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        let host = headers::host(&self.parts.headers);
        let map = request.headers_mut();
        map.clone_from(&self.parts.headers);
        if self.parts.version < Version::HTTP_2 {
            upgrade::strip_token(map);
        }
        if let Some(key) = self.key {
            let key = headers::once(HeaderValue::from(key.get()));
            map.insert(HeaderName::from_static(KEY), key);
        }
        map.insert(
            HeaderName::from_static(EPOCH),
            HeaderValue::from(self.epoch.0),
        );
        if let Some(remaining) = remaining {
            map.insert("grpc-timeout", deadline::header(remaining));
        }
        let bad = |error: http::Error| Rejection::new(Reason::BadRequest, error.to_string());
        match self.protocol {
            Protocol::H2 => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = if self.parts.uri.authority().is_some() {
                    self.parts.uri.clone()
                } else {
                    request.headers_mut().remove(header::HOST);
                    let path = self
                        .parts
                        .uri
                        .path_and_query()
                        .map_or("/", |path| path.as_str());
                    Uri::builder()
                        .scheme("http")
                        .authority(host.unwrap_or("cell"))
                        .path_and_query(path)
                        .build()
                        .map_err(bad)?
                };
            }
            Protocol::H1 => {
                *request.version_mut() = Version::HTTP_11;
                if let Some(authority) = self.parts.uri.authority()
                    && let Ok(value) = HeaderValue::from_str(authority.as_str())
                {
                    request.headers_mut().insert(header::HOST, value);
                }
                let path = self
                    .parts
                    .uri
                    .path_and_query()
                    .map_or("/", |path| path.as_str());
                *request.uri_mut() = path
                    .parse()
                    .map_err(|error: http::uri::InvalidUri| bad(error.into()))?;
            }
        }
        Ok(request)
    }
}

/// The answer as the client gets it.
pub(super) fn head_back(
    response: Response<Inbound>,
    version: Version,
    body: impl FnOnce(Inbound) -> ResponseBody,
) -> Response<ResponseBody> {
    let (mut head, incoming) = response.into_parts();
    if head.version < Version::HTTP_2 {
        headers::strip_hop_by_hop(&mut head.headers);
    }
    head.version = version;
    head.extensions.clear();
    Response::from_parts(head, body(incoming))
}
