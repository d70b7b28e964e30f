//! The pod behind the proxies: answers gRPC-shaped requests over HTTP/2, and plain ones over HTTP/1.1.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

const ANSWER: &[u8] = &[0; 105];

/// Starts the pod on a thread of its own and returns where it listens.
pub fn start() -> Result<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("pod".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            if let Ok(runtime) = runtime {
                let _ = runtime.block_on(serve(sender));
            }
        })?;
    receiver.recv().context("the pod did not start")
}

async fn serve(sender: mpsc::Sender<SocketAddr>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    sender.send(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(1000);
            let service = hyper::service::service_fn(answer);
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let grpc = request.version() == http::Version::HTTP_2;
    let _ = request.into_body().collect().await;
    let data = Ok(Frame::data(Bytes::from_static(ANSWER)));
    let trailers = grpc.then(|| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Ok(Frame::trailers(trailers))
    });
    let frames = futures::stream::iter([Some(data), trailers].into_iter().flatten());
    let mut response = Response::new(StreamBody::new(frames).boxed());
    let headers = response.headers_mut();
    if grpc {
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    } else {
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        headers.insert("content-length", HeaderValue::from(ANSWER.len()));
    }
    Ok(response)
}
