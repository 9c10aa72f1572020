//! How often a cluster may write, and how much.

use std::num::NonZeroU32;

use clap::Args;

use super::{
    ConfigError, duration, given,
    policy::values::{Interval, Rate, RequestRate, SampleRate},
    wrong,
};

/// Flags of rate limits, each per cluster.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Rate limits")]
pub struct RateFlags {
    /// One upload per cluster in this time; 0 turns it off [default: 4m30s].
    #[arg(long, value_name = "DURATION")]
    pub ratelimit: Option<String>,
    /// Remote-write requests a second that a cluster may send, such as 5 or 0.1; 0 is unlimited [default: 0].
    #[arg(long, value_name = "RATE")]
    pub limit_receive_requests_per_second: Option<String>,
    /// Remote-write requests that a cluster may send at once [default: what the rate gives in 10 seconds, at least 1].
    #[arg(long, value_name = "REQUESTS")]
    pub limit_receive_requests_burst: Option<String>,
    /// Samples a second that a cluster may remote-write, native histograms among them; 0 is unlimited [default: 0].
    #[arg(long, value_name = "RATE")]
    pub limit_receive_samples_per_second: Option<String>,
    /// Samples that a cluster may remote-write at once, and so in one request [default: what the rate gives in 10 seconds, at least
    /// 10000].
    #[arg(long, value_name = "SAMPLES")]
    pub limit_receive_samples_burst: Option<String>,
}

impl RateFlags {
    /// Uploads, remote-write requests, and samples in these.
    pub(super) fn read(self) -> Result<(Interval, Option<RequestRate>, Option<SampleRate>), ConfigError> {
        let ratelimit = given(self.ratelimit).unwrap_or_else(|| "4m30s".to_owned());
        let ratelimit = duration::parse(&ratelimit).map_err(|error| ConfigError(format!("--ratelimit: {error}")))?;
        Ok((
            Interval(ratelimit),
            rate(
                ("--limit-receive-requests-per-second", self.limit_receive_requests_per_second),
                ("--limit-receive-requests-burst", self.limit_receive_requests_burst),
            )?,
            rate(
                ("--limit-receive-samples-per-second", self.limit_receive_samples_per_second),
                ("--limit-receive-samples-burst", self.limit_receive_samples_burst),
            )?,
        ))
    }
}

/// The rate that two flags make.
fn rate<const LEAST_BURST: u32>(
    (rate_flag, rate): (&str, Option<String>),
    (burst_flag, burst): (&str, Option<String>),
) -> Result<Option<Rate<LEAST_BURST>>, ConfigError> {
    let burst = given(burst).map(|burst| whole(burst_flag, &burst)).transpose()?;
    let Some(rate) = given(rate) else {
        return match burst {
            None => Ok(None),
            Some(_) => wrong!("{burst_flag}: without {rate_flag} there is no limit for it; give both"),
        };
    };
    let rate = Rate::new(decimal(rate_flag, &rate)?, burst);
    rate.map(Some).map_err(|error| ConfigError(format!("{rate_flag}: {error}")))
}

/// A decimal number without sign or exponent.
fn decimal(flag: &str, value: &str) -> Result<f64, ConfigError> {
    let plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match value.parse::<f64>() {
        Ok(number) if plain => Ok(number),
        _ => wrong!("{flag}: `{value}` is not a number a second, such as 5 or 0.1"),
    }
}

fn whole(flag: &str, value: &str) -> Result<NonZeroU32, ConfigError> {
    value.parse().map_err(|_| ConfigError(format!("{flag}: `{value}` is not a whole number from 1 up")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(rate: &str, burst: &str) -> Result<Option<(u64, u32)>, String> {
        let flags = RateFlags {
            limit_receive_requests_per_second: Some(rate.to_owned()),
            limit_receive_requests_burst: Some(burst.to_owned()),
            ..RateFlags::default()
        };
        let (_, rate, _) = flags.read().map_err(|error| error.to_string())?;
        let quota = rate.and_then(|rate| rate.quota);
        Ok(quota.map(|quota| (quota.period().as_nanos() as u64, quota.burst().get())))
    }

    #[test]
    fn rates_are_decimals_and_rounded_down() {
        for (rate, period) in [
            ("1", 1_000_000_000),
            ("0.1", 10_000_000_000),
            (".01", 100_000_000_000),
            ("3", 333_333_334),
            ("10000", 100_000),
            ("1000000000", 1),
        ] {
            assert_eq!(requests(rate, "1"), Ok(Some((period, 1))), "{rate}");
        }
        for off in ["", "0", "0.0"] {
            assert_eq!(requests(off, ""), Ok(None), "{off:?}");
        }
        assert_eq!(requests("0", "5"), Ok(None), "turned off, whatever the burst");
    }

    #[test]
    fn bursts_are_ten_seconds_worth() {
        for (rate, burst) in [("0.01", 1), ("0.1", 1), ("0.25", 3), ("5", 50), ("1000000000", u32::MAX)] {
            assert_eq!(requests(rate, "").map(|quota| quota.map(|(_, burst)| burst)), Ok(Some(burst)), "{rate}");
        }
        for (rate, burst) in [("0.1", 10_000), ("1000", 10_000), ("1000.5", 10_005), ("50000", 500_000)] {
            let flags = RateFlags { limit_receive_samples_per_second: Some(rate.to_owned()), ..RateFlags::default() };
            let quota = flags.read().unwrap().2.unwrap().quota.unwrap();
            assert_eq!(quota.burst().get(), burst, "{rate}");
        }
    }
}
