//! The types of flags: how each reads its text and its value in the file.
//!
//! Decides, per type, what is accepted and with which words the rest is refused. A slot is the
//! place in [`super::flags::Flags`] that a flag fills; the table of flags knows no types beside
//! this trait.
//!
//! Source: Go `flag`, `strconv`; etcd `pkg/flags`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    gates::FeatureGates,
    syntax::{Number, parse_bool, parse_signed, parse_unsigned},
    url::Url,
};
use crate::base::duration;

/// Why a value in the configuration file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It has another type; Go's name of the one it should have.
    Type(&'static str),
    /// It is a URL that is none.
    Url(String),
    /// Any other reason.
    Text(String),
}

/// A place that one flag fills.
pub(super) trait Slot {
    /// Takes the text that follows the flag or stands in the environment.
    fn set(&mut self, text: &str) -> Result<(), String>;
    /// Takes the value in the configuration file; null never gets here.
    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused>;
    /// The value as the help shows it.
    fn show(&self) -> String;
    /// Whether the flag stands for itself, without a value.
    fn is_boolean(&self) -> bool {
        false
    }
}

const PARSE: &str = "parse error";

fn go_flag_error(error: &Number) -> String {
    match error {
        Number::Syntax => PARSE.to_owned(),
        Number::Range => "value out of range".to_owned(),
    }
}

fn text_of(value: &Value) -> Result<&str, Refused> {
    value.as_str().ok_or(Refused::Type("string"))
}

fn texts_of(value: &Value) -> Result<Vec<String>, Refused> {
    let list = value.as_array().ok_or(Refused::Type("[]string"))?;
    list.iter().map(|item| text_of(item).map(str::to_owned)).collect()
}

/// The number, be it written as a decimal fraction or with an exponent; JSON has one kind only.
fn whole(value: &Value) -> Option<i128> {
    if let Some(number) = value.as_u64() {
        return Some(i128::from(number));
    }
    if let Some(number) = value.as_i64() {
        return Some(i128::from(number));
    }
    let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
    format!("{number:.0}").parse().ok()
}

fn narrowed<T: TryFrom<i128>>(value: &Value, go_type: &'static str) -> Result<T, Refused> {
    let number = whole(value).and_then(|number| T::try_from(number).ok());
    number.ok_or(Refused::Type(go_type))
}

impl Slot for String {
    fn set(&mut self, text: &str) -> Result<(), String> {
        text.clone_into(self);
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        text_of(value)?.clone_into(self);
        Ok(())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Slot for bool {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = parse_bool(text).ok_or(PARSE)?;
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        *self = match value {
            Value::Bool(value) => *value,
            // etcd's YAML is version 1.1, which has more words for it.
            Value::String(word) => match word.to_lowercase().as_str() {
                "y" | "yes" | "on" => true,
                "n" | "no" | "off" => false,
                _ => return Err(Refused::Type("bool")),
            },
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                return Err(Refused::Type("bool"));
            }
        };
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn is_boolean(&self) -> bool {
        true
    }
}

impl Slot for u64 {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = parse_unsigned(text).map_err(|error| go_flag_error(&error))?;
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        *self = narrowed(value, "uint")?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Slot for i64 {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = parse_signed(text).map_err(|error| go_flag_error(&error))?;
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        *self = narrowed(value, "int")?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// etcd reads its only 32-bit flag with a type of its own, which words its errors differently.
impl Slot for u32 {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let fail = |why: &str| format!("strconv.ParseUint: parsing {text:?}: {why}");
        let value = parse_unsigned(text).map_err(|error| match error {
            Number::Syntax => fail("invalid syntax"),
            Number::Range => fail("value out of range"),
        })?;
        *self = Self::try_from(value).map_err(|_wide| fail("value out of range"))?;
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        *self = narrowed(value, "uint32")?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A duration in nanoseconds; negative ones are accepted, as in Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nanos(pub(super) i64);

impl Nanos {
    pub(super) const fn millis(millis: i64) -> Self {
        Self(millis * 1_000_000)
    }
}

impl Slot for Nanos {
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.0 = duration::parse(text).map_err(|_go_drops_it| PARSE.to_owned())?;
        Ok(())
    }

    /// The file has integers only: nanoseconds.
    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        self.0 = narrowed(value, "time.Duration")?;
        Ok(())
    }

    fn show(&self) -> String {
        duration::format(self.0)
    }
}

/// URLs: sorted, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Urls(pub(super) Vec<Url>);

impl Urls {
    pub(super) fn of(text: &str) -> Self {
        Self(Url::parse_list(text).expect("the default is a list of URLs"))
    }
}

impl Slot for Urls {
    fn set(&mut self, text: &str) -> Result<(), String> {
        // etcd lists the empty text as an exception that leaves the list as it is.
        if !text.is_empty() {
            self.0 = Url::parse_list(text)?;
            self.0.dedup();
        }
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        let text = text_of(value)?;
        if !text.is_empty() {
            self.0 = Url::parse_list(text).map_err(Refused::Url)?;
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.0.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
    }
}

/// Origins: URLs, or a star for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origins(pub(super) BTreeSet<String>);

impl Slot for Origins {
    fn set(&mut self, text: &str) -> Result<(), String> {
        if self.0.contains(text) {
            return Ok(());
        }
        if text == "*" {
            self.0.insert(text.to_owned());
            return Ok(());
        }
        let urls = Url::parse_list(text)?;
        self.0 = urls.iter().map(|url| url.as_str().to_owned()).collect();
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        let text = text_of(value)?;
        if !text.is_empty() {
            self.0.clear();
            self.set(text).map_err(Refused::Text)?;
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

/// Texts separated by commas: sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(pub(super) BTreeSet<String>);

impl Names {
    pub(super) fn of(text: &str) -> Self {
        Self(text.split(',').map(str::to_owned).collect())
    }
}

impl Slot for Names {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = Self::of(text);
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        self.0 = texts_of(value)?.into_iter().collect();
        Ok(())
    }

    fn show(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

/// Host names: as [`Names`], but with commas in the file too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hosts(pub(super) Names);

impl Slot for Hosts {
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.0.set(text)
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        let text = text_of(value)?;
        if !text.is_empty() {
            self.0 = Names::of(text);
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.0.show()
    }
}

/// Texts separated by commas, in the order given.
impl Slot for Vec<String> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = text.split(',').map(str::to_owned).collect();
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        *self = texts_of(value)?;
        Ok(())
    }

    fn show(&self) -> String {
        self.join(",")
    }
}

/// One of a few words; the first is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) value: &'static str,
    words: &'static [&'static str],
}

impl Choice {
    pub(super) const fn among(words: &'static [&'static str]) -> Self {
        Self { value: words[0], words }
    }
}

/// In the file only the state of the initial cluster is of this type.
impl Slot for Choice {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let word = self.words.iter().find(|word| **word == text);
        self.value = word.ok_or("invalid value")?;
        Ok(())
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        let text = text_of(value)?;
        if text.is_empty() {
            return Ok(());
        }
        self.set(text).map_err(|_plain| Refused::Text(format!("unexpected clusterState {text:?}")))
    }

    fn show(&self) -> String {
        self.value.to_owned()
    }
}

/// A flag that is checked and then forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Enforced {
    pub(super) value: &'static str,
    pub(super) words: &'static [&'static str],
}

impl Slot for Enforced {
    fn set(&mut self, text: &str) -> Result<(), String> {
        match text.split(',').find(|word| !self.words.contains(word)) {
            Some(word) => Err(format!("invalid value {word:?}")),
            None => Ok(()),
        }
    }

    /// etcd does not check what the file says.
    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        text_of(value).map(|_any| ())
    }

    fn show(&self) -> String {
        self.value.to_owned()
    }
}

/// A flag of the past, dropped silently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ignored;

impl Slot for Ignored {
    fn set(&mut self, _text: &str) -> Result<(), String> {
        Ok(())
    }

    fn set_from_file(&mut self, _value: &Value) -> Result<(), Refused> {
        Ok(())
    }

    fn show(&self) -> String {
        String::new()
    }

    fn is_boolean(&self) -> bool {
        true
    }
}

impl Slot for FeatureGates {
    fn set(&mut self, text: &str) -> Result<(), String> {
        Self::set(self, text)
    }

    fn set_from_file(&mut self, value: &Value) -> Result<(), Refused> {
        Self::set(self, text_of(value)?).map_err(Refused::Text)
    }

    fn show(&self) -> String {
        self.shown()
    }
}
