//! The macro that defines flags: one block per flag holds its name, help text, default, effect and examples.
//!
//! ```text
//! flags! {
//!     /// Flags of the pod network.
//!     pub struct NetworkFlags for NetworkSettings, error BadSetting;
//!
//!     /// Masquerade packets that leave the pod network          <- the help text
//!     ip_masq: bool = defaults::MASQUERADE, alone "true";        <- --ip-masq, its type and its default
//!     |flags, settings| settings.masquerade = flags.ip_masq;     <- the effect: how the value goes into the settings
//!     example "--ip-masq" => |settings| settings.masquerade;     <- a test: true with these arguments, false without them
//! }
//! ```
//!
//! The macro makes a struct that `clap` parses, its `Default` with the defaults of all flags, and `apply`, which runs the effects in order.
//! After the type of a flag stands:
//!
//! - `= VALUE`: the default, which the help shows.
//! - `unset ""`: a text that is empty if the flag is not given. The help shows no default.
//! - `otherwise VALUE`: for an `Option`, which must stay `None` if the flag is not given: the default that the help and `/flagz` show.
//! - `alone "true"`: `--flag` means `--flag=true`, and a value has to follow a `=`.
//!
//! A flag without an effect is read where it is used. `#[arg(...)]` adds attributes of `clap`.

macro_rules! flags {
    (
        $(#[$struct_meta:meta])*
        pub struct $name:ident for $settings:ty, error $error:ty;
        $(
            #[doc = $doc:literal]
            $(#[arg($($arg:tt)+)])*
            $flag:ident: $type:ident $(<$inner:ident>)? $(= $default:expr)? $(, unset $unset:literal)? $(, otherwise $otherwise:expr)?
                $(, alone $alone:literal)?;
            $(|$flags:ident, $into:ident| $effect:expr;)?
            $(example $arguments:literal => $check:expr;)*
        )+
        $(flatten $member:ident: $member_type:ident;)*
    ) => {
        #[derive(clap::Args, Clone, Debug, PartialEq)]
        $(#[$struct_meta])*
        pub struct $name {
            $(
                #[doc = $doc]
                #[arg(long)]
                $(#[arg(default_value_t = $default)])?
                $(#[arg(default_value = $unset, hide_default_value = true)])?
                $(#[arg(help = $crate::config::flag_blocks::with_default($doc, &$otherwise))])?
                $(#[arg(
                    value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = $alone, value_parser = go_bool,
                    action = clap::ArgAction::Set
                )])?
                $(#[arg($($arg)+)])*
                pub $flag: $type $(<$inner>)?,
            )+
            $(
                #[command(flatten)]
                #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
                pub $member: $member_type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($flag: flags!(@default [$($default)?] [$($unset.into())?]),)+
                    $($member: $member_type::default(),)*
                }
            }
        }

        impl $name {
            /// Runs the effects of all flags, in the order of the blocks.
            ///
            /// # Errors
            /// A value that is invalid.
            #[allow(clippy::unnecessary_wraps, reason = "the effects of some sets of flags cannot fail")]
            fn apply(&self, settings: &mut $settings) -> Result<(), $error> {
                $($(
                    let ($flags, $into) = (self, &mut *settings);
                    $effect;
                )?)+
                Ok(())
            }

            /// The flags that are `None` if they are not given, with the default that is in force then.
            pub(in crate::config) fn defaults_if_unset() -> Vec<(String, String)> {
                vec![$($((stringify!($flag).replace('_', "-"), $otherwise.to_string()),)?)+]
            }

            /// The examples: the flag, arguments, and a check of the settings.
            #[cfg(test)]
            #[allow(clippy::type_complexity, reason = "a row of a table")]
            fn examples() -> Vec<(&'static str, &'static str, fn(&$settings) -> bool)> {
                vec![$($((stringify!($flag), $arguments, $check),)*)+]
            }
        }
    };
    (@default [$default:expr] []) => { $default };
    (@default [] [$unset:expr]) => { $unset };
    (@default [] []) => { Default::default() };
}

pub(super) use flags;

/// The help text of a flag that is `None` if it is not given. A text that names a default already stays as it is.
pub(super) fn with_default(help: &str, default: &dyn std::fmt::Display) -> String {
    let help = help.trim();
    if help.contains("[default:") { help.to_owned() } else { format!("{help} [default: {default}]") }
}

/// An example of a flag: its name, its value, and a check of the settings that follow from it.
#[cfg(test)]
pub(super) type Example<S> = (&'static str, &'static str, fn(&S) -> bool);

/// Checks the examples of flags: each holds with its arguments, and does not hold without them.
#[cfg(test)]
pub(super) fn check_examples<F: clap::Args, S>(examples: &[Example<S>], settings: impl Fn(&F) -> S) {
    let parse = |arguments: &str| {
        let command = F::augment_args(clap::Command::new("flags"));
        let matches = command.try_get_matches_from(std::iter::once("flags").chain(arguments.split_whitespace()));
        settings(&matches.and_then(|matches| F::from_arg_matches(&matches)).unwrap_or_else(|error| panic!("{arguments}: {error}")))
    };
    let without = parse("");
    for (flag, arguments, check) in examples {
        assert!(check(&parse(arguments)), "{flag}: the example {arguments:?} does not hold");
        assert!(!check(&without), "{flag}: the example {arguments:?} holds without its arguments, so it shows no effect");
    }
}
