//! The command line in a shell script, as far as it is written out: with the script's own variables, arrays and sums
//! put in. Nothing is run.

/// The words of a script's command line for verl.
pub(super) fn command(text: &str) -> Option<Vec<String>> {
    // Between the lines that a command is broken into comments are stray, and so are empty lines.
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let text = lines.join("\n").replace("\\\n", " ");
    let begin = text.find("verl.trainer.main")?;
    let (before, command) = text.split_at(begin);
    let words = shlex::split(&Variables::of(before).put_into(command))?;
    let is_word = |word: &&String| {
        word.contains('=') || word.starts_with(['-', '$']) || word.starts_with("verl.trainer")
    };
    let own = |word: &&String| !word.starts_with('$');
    Some(words.iter().take_while(is_word).filter(own).cloned().collect())
}

/// A script's variables with their values, in its order.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn of(text: &str) -> Self {
        let mut known = Self::default();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some((name, value)) = line.trim().trim_start_matches("export ").split_once('=') else {
                continue;
            };
            if name.is_empty() || !name.chars().all(is_of_name) {
                continue;
            }
            let value = match value.strip_prefix('(') {
                Some(first) => {
                    let items = lines.by_ref().map(str::trim).take_while(|line| *line != ")");
                    let items: Vec<&str> = [first].into_iter().chain(items).collect();
                    known.put_into(items.join(" ").trim_end_matches(')'))
                }
                None => {
                    let words = shlex::split(&known.put_into(value)).unwrap_or_default();
                    words.into_iter().next().unwrap_or_default()
                }
            };
            known.0.push((name.to_owned(), value));
        }
        known
    }

    fn get(&self, name: &str) -> Option<&str> {
        let known = self.0.iter().rfind(|(known, _)| known == name);
        known.map(|(_, value)| value.as_str()).or((name == "HOME").then_some("~"))
    }

    /// The text with every variable that is known in its place.
    fn put_into(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let (length, value) = self.at(&rest[at..]);
            out.push_str(&value.unwrap_or_else(|| rest[at..at + length].to_owned()));
            rest = &rest[at + length..];
        }
        // An array stands in quotes, which are not its parts'.
        (out + rest).replace(ARRAY_IN_QUOTES, "").replace(ARRAY_OUT_OF_QUOTES, "")
    }

    /// What stands at a `$`: how many bytes of the text, and its value.
    fn at(&self, text: &str) -> (usize, Option<String>) {
        if let Some(sum) = text.strip_prefix("$((")
            && let Some(end) = sum.find("))")
        {
            // A bracket of the sum's own may end there, too.
            let end = end + sum[end + 2..].chars().take_while(|c| *c == ')').count();
            return (
                end + 5,
                Sum { variables: self, text: &sum[..end] }.value().map(|value| value.to_string()),
            );
        }
        if let Some(inside) = text.strip_prefix("${")
            && let Some(end) = closing(inside)
        {
            let (name, fallback) = match inside[..end].split_once(":-") {
                Some((name, fallback)) => (name, Some(self.put_into(fallback.trim_matches('"')))),
                None => (&inside[..end], None),
            };
            let array = name.strip_suffix("[@]");
            let value = self.get(array.unwrap_or(name)).map(str::to_owned);
            let value = match array {
                Some(_) => value.map(|parts| format!("{ARRAY_MARK}{parts}{ARRAY_MARK}")),
                None => value,
            };
            return (end + 3, value.or(fallback));
        }
        let name: String = text[1..].chars().take_while(|c| is_of_name(*c)).collect();
        (1 + name.len(), self.get(&name).map(str::to_owned))
    }
}

const ARRAY_MARK: &str = "\u{1}";
const ARRAY_IN_QUOTES: &str = "\"\u{1}";
const ARRAY_OUT_OF_QUOTES: &str = "\u{1}\"";

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Where the brace closes that this text begins within.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0
    })
}

/// Whole numbers with `+ - * /`, names and brackets.
struct Sum<'a> {
    variables: &'a Variables,
    text: &'a str,
}

impl Sum<'_> {
    fn value(mut self) -> Option<i64> {
        let value = self.terms()?;
        self.text.trim().is_empty().then_some(value)
    }

    fn next(&mut self, any: [char; 2]) -> Option<char> {
        self.text = self.text.trim_start();
        let sign = self.text.chars().next().filter(|c| any.contains(c))?;
        self.text = &self.text[1..];
        Some(sign)
    }

    fn terms(&mut self) -> Option<i64> {
        let mut value = self.factors()?;
        while let Some(sign) = self.next(['+', '-']) {
            let other = self.factors()?;
            value = if sign == '+' { value.checked_add(other)? } else { value.checked_sub(other)? };
        }
        Some(value)
    }

    fn factors(&mut self) -> Option<i64> {
        let mut value = self.factor()?;
        while let Some(sign) = self.next(['*', '/']) {
            let other = self.factor()?;
            value = if sign == '*' { value.checked_mul(other)? } else { value.checked_div(other)? };
        }
        Some(value)
    }

    fn factor(&mut self) -> Option<i64> {
        if self.next(['(', '(']).is_some() {
            let value = self.terms()?;
            return self.next([')', ')']).map(|_| value);
        }
        let text = self.text.trim_start().trim_start_matches('$');
        let length = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
        let (word, rest) = text.split_at(length);
        self.text = rest;
        word.parse().ok().or_else(|| self.variables.get(word)?.parse().ok())
    }
}
