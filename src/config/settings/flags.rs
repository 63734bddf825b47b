//! Flags: each setting once, with its variable, default, unit and reason.
//!
//! Values are taken as text and understood in [`super::resolve`], where everything that
//! is wrong with them is reported together; `clap` would stop at the first.

use clap::{Args, builder::FalseyValueParser};

/// The settings of the sidecar, as they were typed. Each flag has a variable
/// `REMORA_…`; the flag wins.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sidecar")]
pub struct Flags {
    /// Workload certificate: a folder with tls.crt, tls.key and ca.crt, `control` to be given
    /// one by it, unix:PATH to be given one by the SPIFFE Workload API (a SPIRE agent) at that
    /// socket, or `none`. Required, and without a default, because running without mutual
    /// TLS has to be a decision.
    #[arg(
        long,
        env = "REMORA_IDENTITY",
        value_name = "DIR|control|unix:PATH|none",
        hide_env_values = true
    )]
    pub(super) identity: Option<String>,

    /// Control, which sends policy, and certificates to who asks for them, and is told how
    /// this sidecar does; the port is 15030 where none is named. No default: without it
    /// everything comes from folders.
    #[arg(
        long,
        env = "REMORA_CONTROL",
        value_name = "https://HOST[:PORT]",
        hide_env_values = true
    )]
    pub(super) control: Option<String>,

    /// File of the token that proves who this is while there is no certificate: one of
    /// `remora-control token create`, or a service account's. Read anew each time, since
    /// Kubernetes replaces it. No default.
    #[arg(long, env = "REMORA_CONTROL_TOKEN", value_name = "FILE", hide_env_values = true)]
    pub(super) control_token: Option<String>,

    /// File of the roots to know control by, in PEM, while the state folder has none, or does
    /// not know it. No default: where control gives the certificate it has to be named, or the
    /// first one could come from anybody.
    #[arg(long, env = "REMORA_CONTROL_CA", value_name = "FILE", hide_env_values = true)]
    pub(super) control_ca: Option<String>,

    /// SPIFFE id of control. Default: /ns/remora/sa/control of the own trust domain.
    #[arg(long, env = "REMORA_CONTROL_ID", value_name = "spiffe://…", hide_env_values = true)]
    pub(super) control_id: Option<String>,

    /// Folder for what control and the Workload API send, so that a restart needs neither.
    /// With keys in it, it has to be in memory (tmpfs): a key on a disk outlives the pod.
    #[arg(
        long,
        env = "REMORA_STATE",
        value_name = "DIR",
        default_value = "/run/remora/state",
        hide_env_values = true
    )]
    pub(super) state: String,

    /// Name that tells this sidecar from others of the same workload. Default: the name of
    /// the machine, which in Kubernetes is the pod's.
    #[arg(long, env = "REMORA_INSTANCE", value_name = "NAME", hide_env_values = true)]
    pub(super) instance: Option<String>,

    /// How connections get here: `capture` by packet rules, or `explicit` by address.
    /// Default: `explicit` with --app or --tcp, else `capture`. Only explicit mode works
    /// without privileges, which is why naming the application chooses it.
    #[arg(long, env = "REMORA_MODE", value_name = "MODE", hide_env_values = true)]
    pub(super) mode: Option<String>,

    /// The application behind the inbound listener, in explicit mode. No default: in
    /// capture mode the original destination says it.
    #[arg(long, env = "REMORA_APP", value_name = "ADDR:PORT", hide_env_values = true)]
    pub(super) app: Option<String>,

    /// A local port that leads to one service; repeat it, or separate with commas. A LOCAL
    /// that is only a port is on 127.0.0.1, for nobody else should use it. No default.
    #[arg(
        long,
        env = "REMORA_TCP",
        value_name = "LOCAL=HOST:PORT",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub(super) tcp: Vec<String>,

    /// Listeners for callers of the application, addresses with ports separated by commas,
    /// or `off`. On every address, since callers come from other pods.
    #[arg(
        long,
        env = "REMORA_INBOUND",
        value_name = "ADDR:PORT,…",
        default_value = "0.0.0.0:15006,[::]:15006",
        hide_env_values = true
    )]
    pub(super) inbound: String,

    /// Listeners for the application's own calls, or `off`. On loopback, since a proxy open
    /// to the network would lend this pod's identity to anybody.
    #[arg(
        long,
        env = "REMORA_OUTBOUND",
        value_name = "ADDR:PORT,…",
        default_value = "127.0.0.1:15001,[::1]:15001",
        hide_env_values = true
    )]
    pub(super) outbound: String,

    /// Listeners for health, metrics and debug pages, or `off`. On every address, since
    /// the kubelet and Prometheus ask from outside of the pod.
    #[arg(
        long,
        env = "REMORA_ADMIN",
        value_name = "ADDR:PORT,…",
        default_value = "0.0.0.0:15020,[::]:15020",
        hide_env_values = true
    )]
    pub(super) admin: String,

    /// Folder of policy documents, watched for changes. Without it, and without --control,
    /// the defaults are in force (`remora defaults`), which need no configuration to be safe.
    #[arg(long, env = "REMORA_POLICY", value_name = "DIR", hide_env_values = true)]
    pub(super) policy: Option<String>,

    /// Namespace of the workload. Default: the certificate's, else `default`; it decides
    /// which documents are for this workload.
    #[arg(long, env = "REMORA_NAMESPACE", value_name = "NAME", hide_env_values = true)]
    pub(super) namespace: Option<String>,

    /// Zone of the workload, as its node's label topology.kubernetes.io/zone has it. Endpoints
    /// of the same zone are preferred, where documents say theirs. No default: a wrong zone
    /// would be worse than none.
    #[arg(long, env = "REMORA_ZONE", value_name = "NAME", hide_env_values = true)]
    pub(super) zone: Option<String>,

    /// DNS servers, addresses with or without a port (53), separated by commas. Default:
    /// those of /etc/resolv.conf, which is what the application asks too.
    #[arg(
        long,
        env = "REMORA_DNS",
        value_name = "ADDR[:PORT],…",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub(super) dns: Vec<String>,

    /// The longest a shutdown takes, as a duration (`25s`). Below the 30 s Kubernetes gives
    /// a pod, so that the last requests end by our hand and not by SIGKILL.
    #[arg(
        long,
        env = "REMORA_GRACE",
        value_name = "DURATION",
        default_value = "25s",
        hide_env_values = true
    )]
    pub(super) grace: String,

    /// How long new connections are still welcome after SIGTERM, as a duration. Callers
    /// hear of the pod's end only some time after the pod does.
    #[arg(
        long,
        env = "REMORA_LAME_DUCK",
        value_name = "DURATION",
        default_value = "2s",
        hide_env_values = true
    )]
    pub(super) lame_duck: String,

    /// Threads of each direction, 1 to 64. One carries more than most pods send, and every
    /// further one has pools and memory of its own.
    #[arg(
        long,
        env = "REMORA_THREADS",
        value_name = "COUNT",
        default_value = "1",
        hide_env_values = true
    )]
    pub(super) threads: String,

    /// Connections of each direction, 1 to 1000000. The bound keeps a flood from taking
    /// the memory of the pod; connections over it wait in the listener's queue.
    #[arg(
        long,
        env = "REMORA_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value = "10000",
        hide_env_values = true
    )]
    pub(super) max_connections: String,

    /// Requests that leave a line in the log: `off`, `failures`, `all`, or the failures and
    /// a share of the others such as `1%`. Failures are what a line is looked for.
    #[arg(
        long,
        env = "REMORA_ACCESS_LOG",
        value_name = "WHICH",
        default_value = "failures",
        hide_env_values = true
    )]
    pub(super) access_log: String,

    /// Level of the log: `error`, `warn`, `info`, `debug`, `trace`, or by target as in
    /// `info,remora::discovery=debug`. `info` is a handful of lines an hour.
    #[arg(
        long,
        env = "REMORA_LOG",
        value_name = "LEVEL",
        default_value = "info",
        hide_env_values = true
    )]
    pub(super) log: String,

    /// Form of the log: `json` for collectors, or `text` for eyes.
    #[arg(
        long,
        env = "REMORA_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "json",
        hide_env_values = true
    )]
    pub(super) log_format: String,

    /// Take over the listeners of the process that runs already (then send it SIGQUIT), so
    /// that a new version refuses no connection. Default: no.
    #[arg(
        long,
        env = "REMORA_UPGRADE",
        value_parser = FalseyValueParser::new(),
        hide_env_values = true
    )]
    pub(super) upgrade: bool,

    /// Socket over which listeners are handed over. Its folder must be writable for this
    /// user only: whoever makes the socket first gets the listeners.
    #[arg(
        long,
        env = "REMORA_UPGRADE_SOCK",
        value_name = "PATH",
        default_value = "/run/remora/upgrade.sock",
        hide_env_values = true
    )]
    pub(super) upgrade_sock: String,
}
