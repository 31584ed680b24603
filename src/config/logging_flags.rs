//! The flags about the log. They also count with a configuration file.

use std::convert::Infallible;

use super::duration::GoDuration;
use super::flag_blocks::flags;
use super::flag_values::{Patterns, duration, go_bool, patterns};
use super::kubeproxy::defaults;
use super::kubeproxy::document::KubeProxyConfiguration;
use super::settings::LogFormat;

flags! {
    /// Flags about the log. They also count with a configuration file.
    pub struct LoggingFlags for KubeProxyConfiguration, error Infallible;

    /// Verbosity of the log: 0 for events that matter, 2 also for each sync, 4 for each decision, 6 for everything
    #[arg(short, value_name = "LEVEL")]
    v: Option<u32>, otherwise 0;
    |flags, config| config.logging.verbosity = flags.v.unwrap_or(config.logging.verbosity);
    example "-v 4" => |config| config.logging.verbosity == 4;
    example "--v=4" => |config| config.logging.verbosity == 4;

    /// Accepted and ignored: PATTERN=LEVEL, separated by commas
    #[arg(value_name = "PATTERNS", value_parser = patterns)]
    vmodule: Vec<Patterns>;
    |flags, config| config.logging.vmodule.splice(0..0, flags.vmodule.iter().flat_map(|patterns| patterns.0.iter().cloned()));
    example "--vmodule=a=1,b=2" => |config| config.logging.vmodule.len() == 2;

    /// Format of the log: text or json
    #[arg(value_name = "FORMAT")]
    logging_format: Option<String>, otherwise defaults::LOGGING_FORMAT;
    |flags, config| if let Some(format) = &flags.logging_format {
        config.logging.format.clone_from(format);
    };
    example "--logging-format=json" => |config| config.logging.format == "json";

    /// Accepted and ignored: every line is written at once
    #[arg(value_name = "DURATION", value_parser = duration)]
    log_flush_frequency: Option<GoDuration>, otherwise defaults::FLUSH_FREQUENCY;
    |flags, config| config.logging.flush_frequency = flags.log_flush_frequency.unwrap_or(config.logging.flush_frequency);
    example "--log-flush-frequency=1s" => |config| config.logging.flush_frequency == GoDuration::from_secs(1);

    /// Accepted and ignored: the log is one stream
    log_text_split_stream: Option<bool>, otherwise false, alone "true";
    |flags, config| {
        let options = &mut config.logging.options.text;
        options.split_stream = flags.log_text_split_stream.unwrap_or(options.split_stream);
    };
    example "--log-text-split-stream" => |config| config.logging.options.text.split_stream;

    /// Accepted and ignored: nothing is buffered
    #[arg(value_name = "BYTES")]
    log_text_info_buffer_size: Option<String>, otherwise defaults::INFO_BUFFER_SIZE;
    |flags, config| if let Some(size) = &flags.log_text_info_buffer_size {
        config.logging.options.text.info_buffer_size.clone_from(size);
    };
    example "--log-text-info-buffer-size=1" => |config| config.logging.options.text.info_buffer_size == "1";

    /// Accepted and ignored: the log is one stream
    log_json_split_stream: Option<bool>, otherwise false, alone "true";
    |flags, config| {
        let options = &mut config.logging.options.json;
        options.split_stream = flags.log_json_split_stream.unwrap_or(options.split_stream);
    };
    example "--log-json-split-stream" => |config| config.logging.options.json.split_stream;

    /// Accepted and ignored: nothing is buffered
    #[arg(value_name = "BYTES")]
    log_json_info_buffer_size: Option<String>, otherwise defaults::INFO_BUFFER_SIZE;
    |flags, config| if let Some(size) = &flags.log_json_info_buffer_size {
        config.logging.options.json.info_buffer_size.clone_from(size);
    };
    example "--log-json-info-buffer-size=1" => |config| config.logging.options.json.info_buffer_size == "1";
}

impl LoggingFlags {
    /// The format of the log while there is no valid configuration.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        if self.logging_format.as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text }
    }

    /// Sets the flags that are given in a configuration.
    pub fn apply_to(&self, config: &mut KubeProxyConfiguration) {
        let Ok(()) = self.apply(config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flag_blocks::check_examples;

    #[test]
    fn each_flag_has_the_effect_of_its_examples() {
        check_examples(&LoggingFlags::examples(), |flags: &LoggingFlags| {
            let mut config = KubeProxyConfiguration::built_in();
            flags.apply_to(&mut config);
            config
        });
    }
}
