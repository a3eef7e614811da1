//! How an error is told to somebody who only sees its text.
//!
//! Decides how an error and its causes are put into one line. Used by whoever logs an error, prints
//! it, or passes it on as text.

use std::error::Error;

/// An error with everything that led to it in one line, outermost first, separated by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fmt};

    use super::chain;

    #[derive(Debug)]
    struct Told(&'static str, Option<Box<Self>>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn causes_follow_what_they_led_to() {
        let cause = Told("no more room", Some(Box::new(Told("the disk is full", None))));
        let error = Told("cannot write db", Some(Box::new(cause)));
        assert_eq!(chain(&error), "cannot write db: no more room: the disk is full");
    }
}
