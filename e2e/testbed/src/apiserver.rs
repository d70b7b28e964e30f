//! etcd and kube-apiserver: an API with nothing behind it, or with chosen controllers.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::pki::{Authority, Subject};
use crate::process::{self, Server, Spec};
use crate::{Error, Result, cache};

/// A kube-apiserver shared by this process.
pub fn apiserver() -> Result<&'static Apiserver> {
    static SHARED: OnceLock<Result<Apiserver>> = OnceLock::new();
    SHARED
        .get_or_init(Apiserver::start)
        .as_ref()
        .map_err(|error| Error::Shared(error.to_string()))
}

/// A kube-apiserver with its etcd. RBAC is on; the kubeconfig is an administrator's.
///
/// No controllers run, so nothing deletes the content of namespaces or collects garbage; see
/// [`Apiserver::start_controllers`].
#[derive(Debug)]
pub struct Apiserver {
    // Fields drop in this order: clients first, etcd last.
    api: Server,
    etcd: Server,
    port: u16,
    dir: PathBuf,
    kubeconfig: PathBuf,
}

impl Apiserver {
    /// Starts one of one's own; it stops when dropped.
    pub fn start() -> Result<Self> {
        process::retrying(Self::start_once)
    }

    fn start_once() -> Result<Self> {
        let (etcd_program, api_program) = (cache::find("etcd")?, cache::find("kube-apiserver")?);
        let dir = process::data_dir("apiserver", None)?;
        let (etcd, etcd_url) = start_etcd(&etcd_program, &dir)?;
        let port = process::free_port()?;
        let authority = Authority::create(&dir.join("pki"))?;
        let serving = authority.sign(
            "apiserver",
            &Subject {
                name: "kube-apiserver",
                dns: vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()],
                addresses: vec![[127, 0, 0, 1].into(), [10, 0, 0, 1].into()],
                ..Subject::default()
            },
        )?;
        let tokens = authority.keys("service-accounts")?;
        let url = format!("https://127.0.0.1:{port}");
        let kubeconfig = authority.kubeconfig("admin", "admin", Some("system:masters"), &url)?;
        let args = vec![
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            // Without a routable address the endpoint of `kubernetes.default` cannot be made; nobody here uses it.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", serving.certificate.display()),
            format!("--tls-private-key-file={}", serving.key.display()),
            format!("--client-ca-file={}", authority.certificate().display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", tokens.public.display()),
            format!(
                "--service-account-signing-key-file={}",
                tokens.private.display()
            ),
            "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--enable-priority-and-fairness=false".to_owned(),
            "--max-requests-inflight=0".to_owned(),
            "--max-mutating-requests-inflight=0".to_owned(),
            format!(
                "--audit-policy-file={}",
                write_audit_policy(&dir)?.display()
            ),
            format!("--audit-log-path={}", dir.join("audit.log").display()),
            // Never cut, so that it can be read as it grows.
            "--audit-log-maxsize=100000".to_owned(),
        ];
        let mut api = Server::start(Spec {
            name: "kube-apiserver",
            program: &api_program,
            args,
            env: Vec::new(),
            log: dir.join("apiserver.log"),
            stop: Signal::SIGKILL,
            user: None,
        })?;
        let kubectl = cache::find("kubectl")?;
        let config_arg = format!("--kubeconfig={}", kubeconfig.display());
        api.wait_ready(Duration::from_secs(60), || {
            process::run(None, &kubectl, &[&config_arg, "get", "--raw=/readyz"], &[]).is_ok()
        })?;
        Ok(Self {
            api,
            etcd,
            port,
            dir,
            kubeconfig,
        })
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The API's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The audit log: one JSON event a line, level Metadata, with the user agent of every request that wrote.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    /// Runs kubectl as administrator and returns its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let config = format!("--kubeconfig={}", self.kubeconfig.display());
        let args: Vec<&str> = std::iter::once(config.as_str())
            .chain(args.iter().copied())
            .collect();
        process::run(None, &cache::find("kubectl")?, &args, &[])
    }

    /// Applies a file or every file of a folder, and waits until the CRDs among them are served. Relative paths
    /// start at the current folder, which for tests is that of the crate.
    pub fn apply(&self, manifests: &Path) -> Result<()> {
        let manifests = std::path::absolute(manifests)
            .map_err(Error::io(format!("find {}", manifests.display())))?;
        let file = manifests.display().to_string();
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file])?;
        self.kubectl(&[
            "wait",
            "crd",
            "--all",
            "--for=condition=Established",
            "--timeout=30s",
        ])?;
        Ok(())
    }

    /// Starts kube-controller-manager with these controllers alone, e.g. `namespace-controller` and
    /// `garbage-collector-controller`. It stops when the returned server is dropped.
    pub fn start_controllers(&self, controllers: &[&str]) -> Result<Server> {
        let program = cache::find("kube-controller-manager")?;
        let config = self.kubeconfig.display();
        let port = process::free_port()?;
        let mut server = Server::start(Spec {
            name: "kube-controller-manager",
            program: &program,
            args: vec![
                format!("--kubeconfig={config}"),
                format!("--authentication-kubeconfig={config}"),
                format!("--authorization-kubeconfig={config}"),
                format!("--controllers={}", controllers.join(",")),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
            ],
            env: Vec::new(),
            log: self.dir.join("controller-manager.log"),
            stop: Signal::SIGKILL,
            user: None,
        })?;
        server.wait_ready(Duration::from_secs(30), || {
            std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok()
        })?;
        Ok(server)
    }

    /// The process ids of the apiserver and of etcd.
    #[must_use]
    pub fn pids(&self) -> [u32; 2] {
        [self.api.pid(), self.etcd.pid()]
    }

    /// The apiserver's process, to signal or crash it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.api
    }

    /// etcd's process, to signal or crash it.
    pub fn etcd(&mut self) -> &mut Server {
        &mut self.etcd
    }
}

fn start_etcd(program: &Path, dir: &Path) -> Result<(Server, String)> {
    let (client, peer) = (process::free_port()?, process::free_port()?);
    let (client_url, peer_url) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    let args = vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client_url}"),
        format!("--advertise-client-urls={client_url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    let mut etcd = Server::start(Spec {
        name: "etcd",
        program,
        args,
        env: Vec::new(),
        log: dir.join("etcd.log"),
        stop: Signal::SIGKILL,
        user: None,
    })?;
    etcd.wait_ready(Duration::from_secs(20), || {
        std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, client)).is_ok()
    })?;
    Ok((etcd, client_url))
}

/// Writes are logged with their user agent, reads are not.
pub const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: Metadata
";

fn write_audit_policy(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("audit-policy.yaml");
    std::fs::write(&path, AUDIT_POLICY).map_err(Error::io(format!("write {}", path.display())))?;
    Ok(path)
}
