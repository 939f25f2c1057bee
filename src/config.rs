//! Flags and environment to one checked [`Config`]. The environment is read here and nowhere else.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Args;

use crate::{
    engine::Durability,
    limits::{
        CELL_BYTES_MAX, COLUMNS_MAX, CsvLimits, Limits, ROW_BYTES_CEILING, ROW_BYTES_MAX, UPLOAD_BYTES_MAX, UPLOADS_MAX,
    },
};

/// Serves the table in a folder over gRPC, until SIGTERM or SIGINT.
///
/// Prints one line on standard output when it is ready; logs go to standard error. A signal stops it from accepting,
/// lets running calls finish for up to 30 s, and ends it with exit code 0; a second signal ends it at once.
///
/// Example: tally serve --data /srv/table --grpc 127.0.0.1:5440
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Folder that holds the table; made if it is not there. One server at a time.
    #[arg(long, env = "TALLY_DATA", value_name = "DIR", default_value = "./tally-data")]
    pub data: PathBuf,

    /// Address for gRPC; may be given more than once. Port 0 takes a free port, which the ready line names.
    ///
    /// There is no authentication: whoever reaches this address can add to the table and read sums. An IPv6 address
    /// on a machine without IPv6 is left out if another address remains.
    #[arg(
        long,
        env = "TALLY_GRPC",
        value_name = "ADDR",
        value_delimiter = ',',
        default_values = ["127.0.0.1:5440", "[::1]:5440"]
    )]
    pub grpc: Vec<ListenAddress>,

    /// What an acknowledged upload survives: `fsync` a power failure, `none` the end of the process.
    #[arg(long, env = "TALLY_DURABILITY", value_name = "WHAT", default_value = "fsync")]
    pub durability: Durability,

    /// Columns that a header may have.
    #[arg(long, env = "TALLY_COLUMNS_MAX", value_name = "N", default_value_t = COLUMNS_MAX, value_parser = up_to(COLUMNS_MAX))]
    pub columns_max: usize,

    /// Bytes that a cell may have, without its quotes.
    #[arg(long, env = "TALLY_CELL_BYTES_MAX", value_name = "BYTES", default_value_t = CELL_BYTES_MAX, value_parser = up_to(ROW_BYTES_CEILING))]
    pub cell_bytes_max: usize,

    /// Bytes that a row may have as it stands in the file.
    #[arg(long, env = "TALLY_ROW_BYTES_MAX", value_name = "BYTES", default_value_t = ROW_BYTES_MAX, value_parser = up_to(ROW_BYTES_CEILING))]
    pub row_bytes_max: usize,

    /// Bytes that an upload may have. A unary call cannot carry more than 2 GiB - 1 anyway.
    #[arg(long, env = "TALLY_UPLOAD_BYTES_MAX", value_name = "BYTES", default_value_t = UPLOAD_BYTES_MAX, value_parser = clap::value_parser!(u64).range(1..))]
    pub upload_bytes_max: u64,

    /// Uploads that are received at once; one more is refused with RESOURCE_EXHAUSTED.
    #[arg(long, env = "TALLY_UPLOADS_MAX", value_name = "N", default_value_t = UPLOADS_MAX, value_parser = up_to(UPLOADS_MAX))]
    pub uploads_max: usize,

    /// Seconds that an upload may send nothing before it is given up.
    #[arg(long, env = "TALLY_UPLOAD_IDLE_S", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub upload_idle_s: u64,

    /// What is logged to standard error: error, warn, info, debug, trace, or a tracing filter such as `tally=debug`.
    #[arg(long, env = "TALLY_LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,

    /// How it is logged.
    #[arg(long, env = "TALLY_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Where to listen, as `127.0.0.1:5440`, `[::1]:5440` or a name and a port; a name can stand for several addresses.
#[derive(Clone, Debug)]
pub struct ListenAddress(Vec<SocketAddr>);

impl FromStr for ListenAddress {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        Ok(Self(text.to_socket_addrs()?.collect()))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// Where gRPC listens.
    pub grpc: Vec<SocketAddr>,
    /// What an acknowledged upload survives.
    pub durability: Durability,
    /// The bounds that can be changed.
    pub limits: Limits,
}

impl Config {
    /// What was typed, which clap has checked piece by piece.
    pub fn of(args: &ServeArgs) -> Self {
        let csv = CsvLimits {
            columns_max: args.columns_max,
            cell_bytes_max: args.cell_bytes_max,
            row_bytes_max: args.row_bytes_max,
        };
        let limits = Limits {
            csv,
            upload_bytes_max: args.upload_bytes_max,
            uploads_max: args.uploads_max,
            upload_idle_max: Duration::from_secs(args.upload_idle_s),
        };
        Self {
            data: args.data.clone(),
            grpc: args.grpc.iter().flat_map(|address| address.0.clone()).collect(),
            durability: args.durability,
            limits,
        }
    }
}

/// Refuses what is no filter; the filter itself cannot be cloned, so the text is kept.
fn log_filter(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    tracing_subscriber::EnvFilter::try_new(text).map(|_filter| text.to_owned())
}

/// Parses a number from 1 to the ceiling that the memory plan allows.
fn up_to(ceiling: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(value) if (1..=ceiling).contains(&value) => Ok(value),
        _ => Err(format!("it is a number from 1 to {ceiling}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn config(line: &str) -> Result<Config, clap::Error> {
        let typed = Typed::try_parse_from(std::iter::once("serve").chain(line.split_whitespace()));
        typed.map(|typed| Config::of(&typed.serve))
    }

    #[test]
    fn the_default_is_loopback_and_durable() {
        let Config { data, grpc, durability, limits } = config("").expect("no flags");
        assert_eq!(data, PathBuf::from("./tally-data"));
        assert_eq!(grpc, ["127.0.0.1:5440", "[::1]:5440"].map(|text| text.parse().expect("an address")));
        assert_eq!(durability, Durability::Fsync);
        assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn every_flag_reaches_its_place() {
        let line = "--data /d --grpc 127.0.0.1:1,[::1]:2 --grpc 127.0.0.1:3 --durability none --columns-max 4 \
                    --cell-bytes-max 5 --row-bytes-max 6 --upload-bytes-max 7 --uploads-max 8 --upload-idle-s 9";
        let Config { data, grpc, durability, limits } = config(line).expect("valid");
        assert_eq!(data, PathBuf::from("/d"));
        assert_eq!(grpc, ["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"].map(|text| text.parse().expect("an address")));
        assert_eq!(durability, Durability::None);
        let CsvLimits { columns_max, cell_bytes_max, row_bytes_max } = limits.csv;
        assert_eq!((columns_max, cell_bytes_max, row_bytes_max), (4, 5, 6));
        assert_eq!((limits.upload_bytes_max, limits.uploads_max, limits.upload_idle_max.as_secs()), (7, 8, 9));
    }

    #[test]
    fn what_is_above_its_ceiling_or_no_address_is_refused() {
        for line in [
            "--columns-max 4097",
            "--columns-max 0",
            "--row-bytes-max 8388609",
            "--cell-bytes-max 8388609",
            "--uploads-max 129",
            "--upload-bytes-max 0",
            "--upload-idle-s 0",
            "--grpc nonsense",
            "--grpc 127.0.0.1:70000",
            "--durability maybe",
            "--log =,=",
        ] {
            assert!(config(line).is_err(), "{line}");
        }
    }
}
