//! `cargo titan up`: from nothing to a Ready cell.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_yaml::Value;
use titan_testbed::cache;

use crate::install::{Install, Target};
use crate::progress::{Progress, together};
use crate::{cluster, images, install, paths, preflight, shell, tools};

/// Options of `up`.
#[derive(Debug, Clone, Args)]
pub struct Up {
    /// The cluster, Kafka and images alone: no chart, no examples
    #[arg(long)]
    pub bare: bool,
    /// Leave out our own images, which take minutes to compile the first time
    #[arg(long, requires = "bare")]
    pub no_images: bool,
    /// Use this context of your kubeconfig instead of a local cluster; it must be able to pull the images
    /// (--images), have a default StorageClass if profiles ask for volumes, and reach Kafka (--kafka)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["bare", "no_images"], requires = "kafka")]
    pub context: Option<String>,
    /// With --context: brokers that the cluster's pods reach, host:port,...
    #[arg(long, value_name = "BROKERS", requires = "context")]
    pub kafka: Option<String>,
    /// With --context: what stands before the images' names, such as registry.example.com/titan
    #[arg(
        long,
        value_name = "REPOSITORY",
        requires = "context",
        default_value = "titan"
    )]
    pub images: String,
    /// With --context: the images' tag
    #[arg(long, value_name = "TAG", requires = "context", default_value = "dev")]
    pub tag: String,
    /// With --context: let the router believe every x-titan-key, as the local cluster's does, so that it can be called
    /// without a token; not where others can reach it
    #[arg(long, requires = "context")]
    pub trust_everybody: bool,
    /// Compile the binaries of images together with the tests
    #[arg(skip)]
    pub with_tests: bool,
}

impl Up {
    /// The local cluster with everything in it, from what the tests have compiled.
    pub fn after_tests() -> Self {
        Self {
            bare: false,
            no_images: false,
            context: None,
            kafka: None,
            images: "titan".to_owned(),
            tag: "dev".to_owned(),
            trust_everybody: false,
            with_tests: true,
        }
    }
}

/// Fills the cache with everything that does not depend on this repository's code.
pub fn prepare(progress: &Progress) -> Result<()> {
    tools::install_packages(progress)?;
    together(vec![
        Box::new(|| tools::ensure(progress)),
        Box::new(|| images::build_foreign(progress).map(|_| ())),
    ])
}

/// Runs it.
pub fn run(progress: &Progress, options: &Up) -> Result<()> {
    if let (Some(context), Some(kafka)) = (&options.context, &options.kafka) {
        preflight::for_context(context)?;
        tools::ensure_clients(progress)?;
        let target = Target::Context(context.clone());
        return install(progress, &target, options, kafka);
    }
    preflight::for_cluster()?;
    progress.line(&preflight::logs_hint());
    tools::install_packages(progress)?;
    // A compiler waits for its linker, and a build in Go for its last package: side by side they leave no processor idle.
    together(vec![
        Box::new(|| tools::ensure_for_clusters(progress)),
        Box::new(|| images::build_foreign(progress).map(|_| ())),
        Box::new(|| match options.no_images {
            true => Ok(()),
            false => images::compile(progress, options.with_tests),
        }),
    ])?;
    let built = if options.no_images {
        images::build_foreign(progress)
    } else {
        images::build(progress, options.with_tests)
    }?;
    cluster::up(progress, &built)?;
    if options.bare {
        progress.line(&format!(
            "\nThe cluster is up after {:.0} s. Next:\n  export KUBECONFIG={}\n  {} get nodes\n  cargo titan status",
            progress.elapsed().as_secs_f64(),
            paths::kubeconfig().display(),
            cache::executable("kubectl").display(),
        ));
        return Ok(());
    }
    let kafka = format!("kafka.titan-system.svc:{}", cluster::KAFKA_PORT);
    install(progress, &Target::Local, options, &kafka)
}

fn install(progress: &Progress, target: &Target, options: &Up, kafka: &str) -> Result<()> {
    let install = Install {
        repository: &options.images,
        tag: &options.tag,
        kafka,
        // Nobody but this machine reaches the local cluster, and nobody issues tokens there.
        trust_everybody: options.trust_everybody || matches!(target, Target::Local),
        run: install::fingerprint(&options.tag),
    };
    progress.step("chart titan", |_| install.chart(target))?;
    progress.step("operator available", |_| {
        install.wait_available(target, "deployment/titan-operator")
    })?;
    progress.step("examples/quickstart", |_| {
        apply_quickstart(target, options, kafka)
    })?;
    progress.step("cell-001 Ready", |step| {
        let mut wait = target.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "cell/cell-001",
            "--timeout=300s",
        ]);
        shell::output(&mut wait).map_err(|error| error.context(install::explain(target)))?;
        step.say("");
        Ok(())
    })?;
    progress.step("router available", |_| {
        install.wait_available(target, "deployment/cell-router")
    })?;
    let seconds = progress.elapsed().as_secs_f64();
    progress.line(&format!(
        "\ncell-001 is Ready after {seconds:.0} s. {}",
        next(target, install.trust_everybody)
    ));
    Ok(())
}

/// What to try next, ready to be pasted.
fn next(target: &Target, trusting: bool) -> String {
    let (setting, router) = match target {
        Target::Local => {
            let mut service = target.kubectl(&[
                "get",
                "service/cell-router",
                "-n",
                "titan-system",
                "-o",
                "jsonpath={.spec.clusterIP}",
            ]);
            let address = shell::output(&mut service).unwrap_or_else(|_| "localhost".to_owned());
            let tools = cache::root().join("tools");
            (
                format!(
                    "export KUBECONFIG=$(cargo titan kubeconfig) PATH=\"$PATH:$(printf '%s:' {}/*)\"",
                    tools.display()
                ),
                address,
            )
        }
        Target::Context(context) => (
            format!(
                "kubectl config use-context {context}\n  kubectl -n titan-system port-forward service/cell-router 8080 &"
            ),
            "localhost".to_owned(),
        ),
    };
    let key = if trusting {
        "x-titan-key: 42"
    } else {
        "authorization: Bearer $TOKEN"
    };
    format!(
        "Next, after\n\n  {setting}\n\nlook at it, ask user 42 for orders, and add two cells:\n\n  \
         kubectl get cells && kubectl get pods -n cell-001\n  \
         grpcurl -plaintext -import-path cell-services/proto/proto -proto titan/order/v1/order.proto \
         -H \"{key}\" {router}:8080 titan.order.v1.OrderService/List\n  \
         kubectl apply -f examples/two-cells && kubectl get cells --watch",
    )
}

/// Applies the examples as they are, but for where Kafka and the images are.
fn apply_quickstart(target: &Target, options: &Up, kafka: &str) -> Result<()> {
    let examples = paths::repository().join("examples/quickstart");
    for file in ["profile.yaml", "fleet.yaml", "cell.yaml"] {
        let path = examples.join(file);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut object: Value =
            serde_yaml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        if file == "fleet.yaml" {
            object["spec"]["kafka"]["bootstrap"] = kafka.into();
            object["spec"]["images"]["repository"] = options.images.as_str().into();
        }
        let changed = temporary(file);
        shell::write_if_changed(&changed, &serde_yaml::to_string(&object)?)?;
        let changed = changed.display().to_string();
        shell::output(&mut target.kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            &changed,
        ]))?;
    }
    Ok(())
}

fn temporary(file: &str) -> PathBuf {
    cache::root().join("quickstart").join(file)
}
