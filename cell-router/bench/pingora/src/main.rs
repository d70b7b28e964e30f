//! Forwards everything to one server, with Pingora. It counts nothing and looks nothing up.

use std::net::SocketAddr;

use async_trait::async_trait;
use clap::Parser;
use pingora_core::Result;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

// As cell-router has it, so that the two are compared and not their allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// Where it forwards to.
    #[arg(long)]
    pod: SocketAddr,
    /// Its threads.
    #[arg(long)]
    threads: usize,
    /// Speaks HTTP/2 on both sides, without TLS; HTTP/1.1 without it.
    #[arg(long)]
    h2: bool,
}

struct Forward {
    pod: HttpPeer,
}

#[async_trait]
impl ProxyHttp for Forward {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.pod.clone()))
    }
}

fn main() {
    let arguments = Arguments::parse();
    let conf = ServerConf {
        threads: arguments.threads,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut pod = HttpPeer::new(arguments.pod, false, String::new());
    if arguments.h2 {
        pod.options.set_http_version(2, 2);
        pod.options.max_h2_streams = 100;
    }
    let mut service = http_proxy_service(&server.configuration, Forward { pod });
    if arguments.h2
        && let Some(proxy) = service.app_logic_mut()
    {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        proxy.server_options = Some(options);
    }
    service.add_tcp(&arguments.listen.to_string());
    server.add_service(service);
    server.run_forever();
}
