//! Intercept: the packet rules of a pod, from the command line.

use std::{
    io::{self, Write},
    ops::RangeInclusive,
    process::ExitCode,
};

use clap::Subcommand;

use crate::intercept::{self, Cidr, Command, Config, ParseError};

/// What to do about the packet rules.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    options: Options,
}

/// One thing that can be done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Action {
    /// Install the rules, in place of those of an earlier run. Needs `CAP_NET_ADMIN`.
    Apply,
    /// Write the rules as `nft` syntax, and touch nothing.
    Print,
    /// Check that the kernel holds the very rules `apply` would install.
    Verify,
    /// Remove the rules, if there are any.
    Remove,
}

/// What to intercept; each list is separated by commas.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
struct Options {
    /// Port of the sidecar's inbound listener, as in its --inbound.
    #[arg(long, value_name = "PORT", default_value = "15006", global = true, value_parser = port)]
    inbound_port: u16,

    /// Port of the sidecar's outbound listener, as in its --outbound.
    #[arg(long, value_name = "PORT", default_value = "15001", global = true, value_parser = port)]
    outbound_port: u16,

    /// User the sidecar runs as. Nothing else in the pod may: its traffic is not
    /// intercepted, or it would meet itself for ever.
    #[arg(long, value_name = "UID", default_value = "2102", global = true)]
    proxy_uid: u32,

    /// Port of the sidecar's administration listener; never intercepted, since probes and
    /// scrapes come from outside the mesh.
    #[arg(long, value_name = "PORT", default_value = "15020", global = true, value_parser = port)]
    admin_port: u16,

    /// Ports of the pod, or ranges such as 9000-9010, that callers reach directly.
    #[arg(long, value_name = "LIST", value_delimiter = ',', global = true, value_parser = ports)]
    skip_inbound_ports: Vec<RangeInclusive<u16>>,

    /// Ports, or ranges, that the pod reaches directly. DNS over TCP has to work before the
    /// sidecar does.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "53",
        global = true,
        value_parser = ports
    )]
    skip_outbound_ports: Vec<RangeInclusive<u16>>,

    /// Callers, as addresses or blocks such as 10.0.0.0/8, that reach the pod directly.
    #[arg(long, value_name = "LIST", value_delimiter = ',', global = true)]
    skip_inbound_cidrs: Vec<String>,

    /// Destinations, as addresses or blocks, that the pod reaches directly.
    #[arg(long, value_name = "LIST", value_delimiter = ',', global = true)]
    skip_outbound_cidrs: Vec<String>,
}

/// Does it.
pub(super) fn run(args: &Args, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<ExitCode> {
    let command = match args.action {
        Action::Apply => Command::Apply,
        Action::Print => Command::Print,
        Action::Verify => Command::Verify,
        Action::Remove => Command::Remove,
    };
    let config = match args.options.config() {
        Ok(config) => config,
        Err(error) => {
            writeln!(err, "error: {error}")?;
            return Ok(ExitCode::from(super::EX_CONFIG));
        }
    };
    match intercept::run(command, &config, out) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // A reader that has gone (`| head`) has all it wanted.
        Err(intercept::Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            writeln!(err, "error: {error}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

impl Options {
    /// What the rules are made from; the first block that is none.
    fn config(&self) -> Result<Config, ParseError> {
        let blocks = |list: &[String]| -> Result<Vec<Cidr>, ParseError> {
            list.iter().map(|it| it.parse()).collect()
        };
        let admin = self.admin_port..=self.admin_port;
        Ok(Config {
            inbound_port: self.inbound_port,
            outbound_port: self.outbound_port,
            proxy_uid: self.proxy_uid,
            skip_inbound_ports: self.skip_inbound_ports.iter().cloned().chain([admin]).collect(),
            skip_outbound_ports: self.skip_outbound_ports.clone(),
            skip_inbound_cidrs: blocks(&self.skip_inbound_cidrs)?,
            skip_outbound_cidrs: blocks(&self.skip_outbound_cidrs)?,
        })
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|it| *it != 0);
    port.ok_or_else(|| "a port is a whole number from 1 to 65535".to_owned())
}

/// A port, or a range of them.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if last < first {
        return Err(format!("a range begins with its lower port: `{last}-{first}`"));
    }
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_defaults_are_the_ports_and_the_user_of_the_sidecar() {
        let Args { action, options } = parse(&["verify"]);
        assert_eq!(action, Action::Verify);
        assert_eq!((options.inbound_port, options.outbound_port), (15_006, 15_001));
        assert_eq!((options.proxy_uid, options.admin_port), (2102, 15_020));
        assert_eq!(options.skip_outbound_ports, [53..=53]);
        assert!(options.skip_inbound_ports.is_empty() && options.skip_inbound_cidrs.is_empty());
    }

    #[test]
    fn lists_hold_ports_ranges_and_blocks() {
        let line = [
            "apply",
            "--skip-inbound-ports=22,9000-9010",
            "--skip-outbound-cidrs",
            "10.0.0.0/8,fd00::1",
        ];
        let Args { options, .. } = parse(&line);
        assert_eq!(options.skip_inbound_ports, [22..=22, 9000..=9010]);
        assert_eq!(options.skip_outbound_cidrs, ["10.0.0.0/8", "fd00::1"]);
    }

    #[test]
    fn a_port_or_range_that_is_none_is_refused() {
        for text in ["0", "65536", "a", "", "2-1", "1-"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }

    fn parse(args: &[&str]) -> Args {
        Line::try_parse_from([&["intercept"], args].concat()).unwrap().args
    }
}
