//! Mesh: control, a name server, four applications and a sidecar for each of them.
//!
//! [`Mesh::start`] does what an operator and Kubernetes would: make an authority, give each
//! workload an identity, run the pods, tell DNS about them, write a policy. All of it is
//! done with files and command lines that work by hand as well.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use remora::clock;
use tempfile::TempDir;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    Result,
    apps::SERVICE,
    child::Child,
    client::Client,
    dns::{self, Zone},
};

/// The pods of orders.
pub(crate) const ORDERS: [&str; 3] = ["orders-1", "orders-2", "orders-3"];
const WEB: &str = "web";

/// How long anything may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Nobody of the mesh is reached but from the mesh, and orders is really orders.
const STRICT_CALLERS: &str = "\
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all, namespace: shop}
spec:
  mtls: {mode: strict}
";

/// All that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Mesh {
    // The first to be dropped: nobody is left to write into the folder.
    pods: Vec<Pod>,
    zone: Zone,
    dns: SocketAddr,
    folder: TempDir,
}

/// An application and its sidecar.
#[derive(Debug)]
struct Pod {
    name: &'static str,
    app: Child,
    sidecar: Sidecar,
}

/// A sidecar, and where it listens.
#[derive(Debug)]
struct Sidecar {
    process: Child,
    inbound: SocketAddr,
    outbound: SocketAddr,
    admin: SocketAddr,
}

impl Mesh {
    /// Starts everything, and waits until every sidecar says that it is ready.
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("remora-quickstart-").tempdir()?;
        let zone = Zone::default();
        let dns = zone.serve().await?;
        let mut mesh = Self { pods: Vec::new(), zone, dns, folder };
        let authority = mesh.path("authority");
        mesh.control(["init", "--dir", &authority.to_string_lossy()]).await?;
        for name in ORDERS {
            mesh.start_orders(name).await?;
        }
        mesh.write_policy(WEB, &by_dns())?;
        let pod = mesh.start_pod(WEB, |it| vec![WEB.to_owned(), it.outbound.to_string()]).await?;
        mesh.pods.push(pod);
        Ok(mesh)
    }

    /// Where web is reached: at its sidecar.
    pub(crate) fn web(&self) -> SocketAddr {
        self.sidecar(WEB).map_or_else(|| (Ipv4Addr::LOCALHOST, 0).into(), |it| it.inbound)
    }

    /// Kills a pod, application and sidecar, and takes it out of DNS.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.pods.iter().position(|it| it.name == name).ok_or("no such pod")?;
        drop(self.pods.remove(at));
        self.zone.remove(name);
        Ok(())
    }

    /// Issues a new certificate to every sidecar's folder, and waits until each uses it.
    pub(crate) async fn rotate(&self) -> Result<()> {
        let metric = "remora_certificate_not_after_seconds";
        let mut ends = Vec::new();
        for pod in &self.pods {
            ends.push((pod.name, self.metric(pod.name, metric, &[]).await?));
            // A shorter life, so that the certificates can be told apart.
            self.issue(pod.name, "12h").await?;
        }
        for (name, old) in ends {
            self.until(name, metric, |new| new < old).await?;
        }
        Ok(())
    }

    /// Lets orders-2 have three times the requests of orders-1, and waits until that is in
    /// force; returns the old and the new generation.
    pub(crate) async fn edit_policy(&self) -> Result<(f64, f64)> {
        let metric = "remora_policy_generation";
        let old = self.metric(WEB, metric, &[]).await?;
        let inbound = |name| self.sidecar(name).map(|it| it.inbound.to_string());
        let addresses = (inbound(ORDERS[0]), inbound(ORDERS[1]));
        let (Some(first), Some(second)) = addresses else { return Err("a pod is gone".into()) };
        self.write_policy(WEB, &by_address(&[(&first, 1), (&second, 3)]))?;
        let new = self.until(WEB, metric, |new| new > old).await?;
        Ok((old, new))
    }

    /// Brings back what [`crate::drill`] has changed.
    pub(crate) async fn restore(&mut self) -> Result<()> {
        self.start_orders(ORDERS[2]).await?;
        let old = self.metric(WEB, "remora_policy_generation", &[]).await?;
        self.write_policy(WEB, &by_dns())?;
        self.until(WEB, "remora_policy_generation", |new| new > old).await?;
        Ok(())
    }

    /// Mutual TLS handshakes that web's sidecar has made.
    pub(crate) async fn client_handshakes(&self) -> Result<f64> {
        let labels = ["side=\"client\"", "result=\"ok\""];
        self.metric(WEB, "remora_handshakes_total", &labels).await
    }

    /// Requests that web's sidecar sent again.
    pub(crate) async fn retries(&self) -> Result<f64> {
        self.metric(WEB, "remora_retries_total", &["verdict=\"sent\""]).await
    }

    /// Connections without TLS between sidecars.
    pub(crate) async fn plaintext(&self) -> Result<f64> {
        let mut sum = self.metric(WEB, "remora_plaintext_fallbacks_total", &[]).await?;
        for pod in self.pods.iter().filter(|it| it.name != WEB) {
            let labels = ["direction=\"inbound\"", "tls=\"false\""];
            sum += self.metric(pod.name, "remora_connections", &labels).await?;
        }
        Ok(sum)
    }

    /// Keeps the files, for whoever wants to know what happened; says where.
    pub(crate) fn keep(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// Says what there is to play with.
    pub(crate) fn print_what_to_try(&self, out: &mut dyn Write) -> Result<()> {
        let (Some(web), Some(orders)) = (self.sidecar(WEB), self.sidecar(ORDERS[0])) else {
            return Err("a pod is gone".into());
        };
        let Some(last) = self.pods.last() else { return Err("no pod is left".into()) };
        let folder = self.folder.path().display();
        let (inbound, outbound, admin) = (web.inbound, web.outbound, web.admin);
        let (app, sidecar) = (last.app.id(), last.sidecar.process.id());
        let (orders_inbound, orders_admin) = (orders.inbound, orders.admin);
        let name = last.name;
        write!(
            out,
            "
The mesh is up again, all three of orders. Try, in another terminal:

  # a request: curl -> sidecar -> web -> sidecar == mutual TLS ==> sidecar -> orders
  curl -i http://{inbound}/orders/17
  # what web does: it asks its sidecar, as a proxy, for a name
  curl -i --proxy http://{outbound} http://{SERVICE}/orders/17
  # past the mesh: refused, for callers have to prove who they are
  curl -i http://{orders_inbound}/orders/17
  # how web's sidecar does, and what it has counted; the same for orders-1
  curl http://{admin}/health/ready
  curl http://{admin}/metrics
  curl http://{orders_admin}/metrics
  # the policy web's sidecar watches: edit it, break it, and look at /health/ready
  $EDITOR {folder}/web/policy/orders.yaml
  # {name}, application and sidecar, dies; DNS goes on to name it
  kill -9 {app} {sidecar}
  # each request of web's sidecar, and whatever it has to say
  tail -f {folder}/web/sidecar.log

Ctrl-C ends all of it.
"
        )?;
        Ok(out.flush()?)
    }

    async fn start_orders(&mut self, name: &'static str) -> Result<()> {
        self.write_policy(name, STRICT_CALLERS)?;
        let pod = self.start_pod(name, |_| vec!["orders".to_owned(), name.to_owned()]).await?;
        self.zone.add(name, pod.sidecar.inbound.port());
        self.pods.push(pod);
        Ok(())
    }

    /// Starts a sidecar, and the application `app` says how to run.
    async fn start_pod(
        &self,
        name: &'static str,
        app: impl Fn(&Sidecar) -> Vec<String>,
    ) -> Result<Pod> {
        self.issue(name, "24h").await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sidecar = self.start_sidecar(name, listener.local_addr()?).await?;
        let mut line = app(&sidecar).into_iter();
        let role = line.next().unwrap_or_default();
        let log = self.path(name).join("app.log");
        let app = Child::start(&role, line, &log, Some(listener))?;
        Ok(Pod { name, app, sidecar })
    }

    async fn start_sidecar(&self, name: &str, app: SocketAddr) -> Result<Sidecar> {
        let log = self.path(name).join("sidecar.log");
        let anywhere = "127.0.0.1:0".to_owned();
        let args = [
            ("--identity", self.path(name).join("identity").display().to_string()),
            ("--policy", self.path(name).join("policy").display().to_string()),
            ("--app", app.to_string()),
            ("--inbound", anywhere.clone()),
            ("--outbound", anywhere.clone()),
            ("--admin", anywhere),
            ("--dns", self.dns.to_string()),
            ("--access-log", "all".to_owned()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let mut process = Child::start("remora", args, &log, None)?;
        let started = clock::now();
        while clock::now() - started < PATIENCE && !process.has_ended() {
            let said = fs::read_to_string(&log)?;
            let listener = |purpose| listener(&said, purpose);
            let all = (listener("inbound"), listener("outbound"), listener("admin"));
            if let (Some(inbound), Some(outbound), Some(admin)) = all
                && let Ok(health) = Client::new(admin).get("admin", "/health/ready").await
                && health.status().is_success()
            {
                return Ok(Sidecar { process, inbound, outbound, admin });
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(format!("the sidecar of {name} does not get ready: {}", fs::read_to_string(&log)?)
            .into())
    }

    async fn issue(&self, name: &str, life: &str) -> Result<()> {
        let (authority, out) = (self.path("authority"), self.path(name).join("identity"));
        let (authority, out) = (authority.to_string_lossy(), out.to_string_lossy());
        let account = name.split('-').next().unwrap_or(name);
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        self.control(["issue", "--dir", &authority, "--id", &id, "--out", &out, "--life", life])
            .await
    }

    async fn control<const N: usize>(&self, args: [&str; N]) -> Result<()> {
        let log = self.path("control.log");
        let control = Child::start("remora-control", args, &log, None)?;
        if spawn_blocking(|| control.success()).await?? {
            return Ok(());
        }
        Err(fs::read_to_string(log)?.into())
    }

    /// Writes the policy of a pod: under another name first, so that nobody reads half of it.
    fn write_policy(&self, name: &str, text: &str) -> Result<()> {
        let folder = self.path(name).join("policy");
        fs::create_dir_all(&folder)?;
        let new = self.path(name).join("orders.yaml.new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, folder.join("orders.yaml"))?)
    }

    /// Waits until a metric of the pod `name` is as wanted, and returns it.
    async fn until(&self, name: &str, metric: &str, wanted: impl Fn(f64) -> bool) -> Result<f64> {
        let started = clock::now();
        while clock::now() - started < PATIENCE {
            let value = self.metric(name, metric, &[]).await?;
            if wanted(value) {
                return Ok(value);
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(format!("`{metric}` of {name} stays as it was").into())
    }

    /// The sum of a metric over all series with these labels, as the pod's sidecar says.
    async fn metric(&self, name: &str, metric: &str, labels: &[&str]) -> Result<f64> {
        let sidecar = self.sidecar(name).ok_or("no such pod")?;
        let page = Client::new(sidecar.admin).get("admin", "/metrics").await?;
        let page = std::str::from_utf8(page.body())?;
        let lines = page.lines().filter_map(|it| it.strip_prefix(metric)?.rsplit_once(' '));
        let lines = lines.filter(|(series, _)| {
            let is_whole_name = series.is_empty() || series.starts_with('{');
            is_whole_name && labels.iter().all(|it| series.contains(it))
        });
        lines.map(|(_, value)| Ok(value.parse::<f64>()?)).sum()
    }

    fn sidecar(&self, name: &str) -> Option<&Sidecar> {
        self.pods.iter().find(|it| it.name == name).map(|it| &it.sidecar)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Where orders is, from DNS, and who it has to be.
fn by_dns() -> String {
    policy(&format!("    srv: {{name: {}}}\n", dns::srv_name()))
}

/// Where orders is, by addresses that weigh differently.
fn by_address(endpoints: &[(&str, u32)]) -> String {
    let line = |(address, weight): &(&str, u32)| {
        format!("    - {{address: \"{address}\", weight: {weight}}}\n")
    };
    policy(&format!("    endpoints:\n{}", endpoints.iter().map(line).collect::<String>()))
}

fn policy(discovery: &str) -> String {
    format!(
        "\
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {{name: orders, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: orders}}]
  tls: {{mode: strict, identities: [\"spiffe://cluster.local/ns/shop/sa/orders\"]}}
  timeouts: {{connect: 5s}}
  discovery:
{discovery}"
    )
}

/// Where a sidecar says that it listens, the last one that wrote to this log.
fn listener(log: &str, purpose: &str) -> Option<SocketAddr> {
    let lines = log.lines().filter_map(|it| serde_json::from_str::<serde_json::Value>(it).ok());
    let mut listening = lines.filter(|it| it["message"] == "listening" && it["purpose"] == purpose);
    listening.next_back()?["address"].as_str()?.parse().ok()
}
