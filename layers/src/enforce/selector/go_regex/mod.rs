//! Regular expressions in Go's syntax (RE2), as trees of `regex-syntax`.
//!
//! What is accepted, and what it means, follows Go's `regexp/syntax` (1.26) with the flags that
//! Prometheus 3 sets: Perl syntax, and a dot that matches a newline. Rust's `regex` differs in
//! both directions: there `\d`, `\w`, `\s` and `\b` are Unicode, `a{,3}` is an error, `[a&&b]` an
//! intersection and `(?x)` a flag. So the text is parsed here and only the tree is handed on.
//!
//! Two limits are tighter than Go's: nesting ([`MAX_NESTING`], there 1,000), since the tree is
//! later compiled by recursion, and the size of all classes together (there 128 MiB). Unicode's
//! tables are those of `regex-syntax`, whose version may differ from Go's.

mod class;
mod escape;

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Dot, Hir, Look, Repetition};

use super::error::{Fault, show};

/// How deep groups, repetitions, sequences and alternations may nest in one another.
pub(super) const MAX_NESTING: u32 = 100;

/// RE2's bound on a repetition, and on the product of nested ones.
const MAX_REPEAT: u32 = 1000;

/// The most ranges in all classes of one expression; `\pL` alone has 677.
const MAX_CLASS_RANGES: usize = 1 << 18;

/// Parses an expression; nothing is anchored yet, and groups do not capture. Faults count from
/// the start of `pattern`.
pub(super) fn parse(pattern: &str) -> Result<Hir, Fault> {
    Parser {
        pattern,
        at: 0,
        flags: Flags::default(),
        group: Group::default(),
        outer: Vec::new(),
        class_ranges: 0,
        last_posix_end: pattern.rfind(":]").unwrap_or(0),
    }
    .parse()
}

#[derive(Clone, Copy, Default)]
struct Flags {
    /// `i`: letters match in either case.
    fold: bool,
    /// `m`: `^` and `$` match at lines too.
    lines: bool,
    /// `s` negated, as Prometheus has `s` on: the dot does not match a newline.
    dot_stops_at_newline: bool,
}

/// A part of the tree, and what its limits need to know of it.
struct Node {
    hir: Hir,
    height: u32,
    /// How many copies of its innermost part its counted repetitions make.
    copies: u32,
}

/// A group that is still open, or the whole expression.
#[derive(Default)]
struct Group {
    opened_at: usize,
    /// The flags around it, which hold again once it closes.
    outer_flags: Flags,
    /// The branches before the last `|`.
    branches: Vec<Node>,
    /// What stands behind it.
    sequence: Vec<Node>,
}

struct Parser<'p> {
    pattern: &'p str,
    at: usize,
    flags: Flags,
    group: Group,
    outer: Vec<Group>,
    class_ranges: usize,
    /// Where the last `:]` stands: no search goes past it in vain.
    last_posix_end: usize,
}

impl Parser<'_> {
    fn parse(mut self) -> Result<Hir, Fault> {
        let mut behind_repeat = false;
        while let Some(c) = self.peek() {
            behind_repeat = self.step(c, behind_repeat)?;
        }
        if !self.outer.is_empty() {
            return Err(Fault::new(
                self.group.opened_at,
                "this group does not end; close it with `)`, or write `\\(` for the character",
            ));
        }
        Ok(self.end_group()?.hir)
    }

    /// Reads one element that starts with `c`, and says whether it was a repetition.
    fn step(&mut self, c: char, behind_repeat: bool) -> Result<bool, Fault> {
        let start = self.at;
        match c {
            '(' => self.open_group()?,
            ')' => self.close_group()?,
            '|' => {
                self.bump();
                self.end_branch()?;
            }
            '^' if self.flags.lines => self.assertion(1, Look::StartLF),
            '^' => self.assertion(1, Look::Start),
            '$' if self.flags.lines => self.assertion(1, Look::EndLF),
            '$' => self.assertion(1, Look::End),
            '.' => {
                self.bump();
                let dot = if self.flags.dot_stops_at_newline { Dot::AnyCharExceptLF } else { Dot::AnyChar };
                self.push(Hir::dot(dot));
            }
            '[' => {
                let class = self.bracketed_class()?;
                self.push_class(class, start)?;
            }
            '\\' => self.backslash()?,
            '*' | '+' | '?' | '{' => {
                let Some((min, max)) = self.repeat_operator(start)? else {
                    self.bump();
                    self.push_char('{')?;
                    return Ok(false);
                };
                // Lazy or greedy, the whole value matches or not.
                self.eat("?");
                if behind_repeat {
                    let written = self.pattern.get(start..self.at).unwrap_or("");
                    return Err(Fault::new(
                        start,
                        format!(
                            "{} repeats a repetition, which RE2 has no meaning for; put the first \
                             one in (?:...)",
                            show(written)
                        ),
                    ));
                }
                self.repeat(start, min, max)?;
                return Ok(true);
            }
            _ => {
                self.bump();
                self.push_char(c)?;
            }
        }
        Ok(false)
    }

    /// Reads `*`, `+`, `?`, `{n}`, `{n,}` or `{n,m}`. `None`: a brace that is just a character.
    fn repeat_operator(&mut self, start: usize) -> Result<Option<(u32, Option<u32>)>, Fault> {
        for (operator, bounds) in [("*", (0, None)), ("+", (1, None)), ("?", (0, Some(1)))] {
            if self.eat(operator) {
                return Ok(Some(bounds));
            }
        }
        let Some((min, max, length)) = counted(self.rest()) else {
            return Ok(None);
        };
        self.at += length;
        let written = show(self.pattern.get(start..self.at).unwrap_or(""));
        if min.max(max.unwrap_or(0)) > MAX_REPEAT {
            return Err(Fault::new(start, format!("{written} repeats more than {MAX_REPEAT} times, RE2's limit")));
        }
        if max.is_some_and(|max| max < min) {
            return Err(Fault::new(start, format!("{written} has its bounds the wrong way round")));
        }
        Ok(Some((min, max)))
    }

    /// Repeats the last element.
    fn repeat(&mut self, start: usize, min: u32, max: Option<u32>) -> Result<(), Fault> {
        let Some(node) = self.group.sequence.pop() else {
            let written = show(self.pattern.get(start..self.at).unwrap_or(""));
            return Err(Fault::new(
                start,
                format!("{written} has nothing to repeat; put a backslash before it if it is meant as such"),
            ));
        };
        let copies = match max.unwrap_or(min) {
            0 if max == Some(0) => 1,
            count => node.copies.saturating_mul(count.max(1)),
        };
        if copies > MAX_REPEAT {
            return Err(Fault::new(
                start,
                format!("repetitions within one another make more than {MAX_REPEAT} copies, RE2's limit"),
            ));
        }
        let hir = Hir::repetition(Repetition { min, max, greedy: true, sub: Box::new(node.hir) });
        let height = self.deeper(node.height, start)?;
        self.group.sequence.push(Node { hir, height, copies });
        Ok(())
    }

    /// Reads an opening parenthesis with all that belongs to it, or a change of flags.
    fn open_group(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.bump();
        if !self.eat("?") {
            self.enter(start, self.flags);
            return Ok(());
        }
        if self.eat("P<") || !self.looks_behind() && self.eat("<") {
            return self.named_group(start);
        }
        let mut flags = self.flags;
        let mut on = true;
        let mut complete = true;
        loop {
            let c = self.peek();
            match c {
                Some('i') => flags.fold = on,
                Some('m') => flags.lines = on,
                Some('s') => flags.dot_stops_at_newline = !on,
                // Swaps lazy and greedy: no difference where the whole value must match.
                Some('U') => {}
                Some('-') if on => {
                    on = false;
                    complete = false;
                    self.bump();
                    continue;
                }
                Some(')') if complete => {
                    self.bump();
                    self.flags = flags;
                    return Ok(());
                }
                Some(':') if complete => {
                    self.bump();
                    self.enter(start, flags);
                    return Ok(());
                }
                _ => return Err(self.bad_group(start)),
            }
            complete = true;
            self.bump();
        }
    }

    fn looks_behind(&self) -> bool {
        self.rest().starts_with("<=") || self.rest().starts_with("<!")
    }

    fn bad_group(&self, start: usize) -> Fault {
        let after = self.pattern.get(start..).unwrap_or("");
        let written: String = after.chars().take(4).collect();
        let lookaround = ["(?=", "(?!", "(?<=", "(?<!"];
        let problem = if lookaround.iter().any(|open| after.starts_with(open)) {
            format!("{} looks around, which RE2 cannot; use a second matcher", show(written))
        } else {
            format!(
                "{} is no group of RE2, which has (...), (?:...), (?P<name>...) and the flags i, m, s, U",
                show(written)
            )
        };
        Fault::new(start, problem)
    }

    /// Reads `name>` and enters the group.
    fn named_group(&mut self, start: usize) -> Result<(), Fault> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += end;
        if end == 0 || !self.eat(">") {
            return Err(Fault::new(start, "a group's name is ASCII letters, digits and `_`, as in (?P<name>...)"));
        }
        self.enter(start, self.flags);
        Ok(())
    }

    fn enter(&mut self, opened_at: usize, flags: Flags) {
        let group = Group { opened_at, outer_flags: self.flags, ..Group::default() };
        self.outer.push(std::mem::replace(&mut self.group, group));
        self.flags = flags;
    }

    fn close_group(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.bump();
        let Some(outer) = self.outer.pop() else {
            return Err(Fault::new(start, "`)` closes no group; write `\\)` for the character"));
        };
        let mut node = self.end_group()?;
        // Groups leave no trace in the tree; that they count keeps us on RE2's side of its limit.
        node.height = self.deeper(node.height, start)?;
        self.flags = self.group.outer_flags;
        self.group = outer;
        self.group.sequence.push(node);
        Ok(())
    }

    fn end_branch(&mut self) -> Result<(), Fault> {
        let sequence = std::mem::take(&mut self.group.sequence);
        let branch = self.join(sequence, Hir::concat)?;
        self.group.branches.push(branch);
        Ok(())
    }

    fn end_group(&mut self) -> Result<Node, Fault> {
        self.end_branch()?;
        let branches = std::mem::take(&mut self.group.branches);
        self.join(branches, Hir::alternation)
    }

    fn join(&self, mut nodes: Vec<Node>, combine: fn(Vec<Hir>) -> Hir) -> Result<Node, Fault> {
        if nodes.len() == 1
            && let Some(only) = nodes.pop()
        {
            return Ok(only);
        }
        let height = nodes.iter().map(|node| node.height).max().unwrap_or(0);
        let copies = nodes.iter().map(|node| node.copies).max().unwrap_or(1);
        let height = self.deeper(height, self.group.opened_at)?;
        Ok(Node { hir: combine(nodes.into_iter().map(|node| node.hir).collect()), height, copies })
    }

    fn deeper(&self, height: u32, at: usize) -> Result<u32, Fault> {
        if height >= MAX_NESTING {
            return Err(Fault::new(at, format!("nests more than {MAX_NESTING} deep; write it flatter")));
        }
        Ok(height + 1)
    }

    fn assertion(&mut self, length: usize, look: Look) {
        self.at += length;
        self.push(Hir::look(look));
    }

    fn push_char(&mut self, c: char) -> Result<(), Fault> {
        if self.flags.fold {
            let at = self.at;
            let class = self.folded(vec![ClassUnicodeRange::new(c, c)]);
            return self.push_class(class, at);
        }
        self.push(Hir::literal(c.encode_utf8(&mut [0; 4]).as_bytes()));
        Ok(())
    }

    fn push_class(&mut self, class: ClassUnicode, at: usize) -> Result<(), Fault> {
        self.count_ranges(class.ranges().len(), at)?;
        self.push(Hir::class(Class::Unicode(class)));
        Ok(())
    }

    fn count_ranges(&mut self, ranges: usize, at: usize) -> Result<(), Fault> {
        self.class_ranges = self.class_ranges.saturating_add(ranges);
        if self.class_ranges > MAX_CLASS_RANGES {
            return Err(Fault::new(at, "too many character classes; use fewer or smaller ones"));
        }
        Ok(())
    }

    fn push(&mut self, hir: Hir) {
        self.group.sequence.push(Node { hir, height: 1, copies: 1 });
    }

    fn rest(&self) -> &str {
        self.pattern.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len();
        }
        found
    }
}

/// Reads `{n}`, `{n,}` or `{n,m}` into its bounds and its length. Numbers without leading zeros
/// only: to RE2 anything else is plain text.
fn counted(text: &str) -> Option<(u32, Option<u32>, usize)> {
    let inner = text.strip_prefix('{')?;
    let (min, rest) = number(inner)?;
    let (max, rest) = match rest.strip_prefix(',') {
        None => (Some(min), rest),
        Some(rest) if rest.starts_with('}') => (None, rest),
        Some(rest) => {
            let (max, rest) = number(rest)?;
            (Some(max), rest)
        }
    };
    let rest = rest.strip_prefix('}')?;
    Some((min, max, text.len() - rest.len()))
}

/// A decimal number and what follows it; one too large for the type stays too large for RE2.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    let padded = digits.len() > 1 && digits.starts_with('0');
    if digits.is_empty() || padded {
        return None;
    }
    Some((digits.parse().unwrap_or(u32::MAX), rest))
}
