//! Feeds arbitrary bytes to the parser of the CNI configuration on standard input, and arbitrary text to the parser of subnet.env.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sepal::cni::network_config::NetworkConfig;
use sepal::cni::delegate::FlannelConfig;
use sepal::cni::subnet_env::SubnetEnv;

fuzz_target!(|input: &[u8]| {
    if let Ok(env) = SubnetEnv::read("subnet.env", &String::from_utf8_lossy(input)) {
        let _ = env.subnets.len();
    }
    if let Ok(config) = NetworkConfig::read(input) {
        let _ = (config.previous(), config.valid());
        if let Ok(flannel) = FlannelConfig::read(&config, &[]) {
            let _ = flannel.frame(&config, true);
        }
    }
});
