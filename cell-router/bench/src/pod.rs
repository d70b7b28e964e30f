//! The pod behind the proxies: answers gRPC-shaped requests over HTTP/2, and plain ones over HTTP/1.1.
//!
//! It speaks HTTP/2 by h2 alone and does as little as it can, because it shares its core with the load.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cores;
use crate::proxies::Shape;

const ANSWER: &[u8] = &[0; 105];

/// A pod that does not answer yet.
pub struct Pod {
    listener: TcpListener,
    shape: Shape,
}

impl Pod {
    /// A pod of its own port.
    pub fn bind(shape: Shape) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Pod { listener, shape })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers on a thread of its own for as long as the process lives.
    pub fn start(self, place: cores::Place) -> Result<SocketAddr> {
        let address = self.address()?;
        std::thread::Builder::new()
            .name("pod".into())
            .spawn(move || {
                if let Err(error) = cores::run_on(place, self.serve()) {
                    eprintln!("the pod ended: {error:#}");
                }
            })?;
        Ok(address)
    }

    /// Answers within a `LocalSet`.
    pub async fn serve(self) -> Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        loop {
            let (stream, _) = listener.accept().await.context("accept")?;
            stream.set_nodelay(true)?;
            match self.shape {
                Shape::Grpc => tokio::task::spawn_local(serve_h2(stream)),
                Shape::Http1 => tokio::task::spawn_local(async move {
                    let service = hyper::service::service_fn(answer_h1);
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                }),
            };
        }
    }
}

async fn serve_h2(stream: TcpStream) {
    let connection = h2::server::Builder::new()
        .max_concurrent_streams(1000)
        .initial_connection_window_size(1 << 20)
        .handshake::<_, Bytes>(stream)
        .await;
    let Ok(mut connection) = connection else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let mut body = request.into_body();
        if body.is_end_stream() {
            let _ = answer_h2(respond);
            continue;
        }
        tokio::task::spawn_local(async move {
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            let _ = answer_h2(respond);
        });
    }
}

fn answer_h2(mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(ANSWER), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}

async fn answer_h1(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER)));
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert("content-type", plain);
    Ok(response)
}
