//! From tokens to a tree.

use super::lexer::{Kind, Piece, Token, split};
use super::{MAX_DEPTH, TemplateError, functions, printf};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Break,
    Continue,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pipeline {
    pub(super) line: usize,
    /// Variables that it sets; two only in `range`.
    pub(super) variables: Vec<String>,
    /// Whether they are new.
    pub(super) declares: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Dot,
    Nil,
    Bool(bool),
    Number(i64),
    Text(String),
    Function(String),
    /// Fields of what the first operand gives.
    Chain(Box<Operand>, Vec<String>),
    Variable(String),
    Nested(Box<Pipeline>),
}

pub(super) fn parse(source: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = split(source)?;
    let mut parser = Parser {
        pieces: pieces.into_iter(),
        variables: vec![String::new()],
        loops: 0,
        line: 1,
    };
    let (nodes, end) = parser.list(0)?;
    match end {
        Closed::Source => Ok(nodes),
        Closed::Block => Err(parser.fail("unexpected {{end}}")),
        Closed::Else(_) => Err(parser.fail("unexpected {{else}}")),
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// Names in scope; the empty one is `$`.
    variables: Vec<String>,
    loops: usize,
    line: usize,
}

/// What ended a list of nodes.
enum Closed {
    Source,
    Block,
    /// With what follows the word.
    Else(Vec<Token>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    If,
    With,
    Range,
}

impl Parser {
    fn fail(&self, text: impl Into<String>) -> TemplateError {
        TemplateError::Syntax {
            line: self.line,
            text: text.into(),
        }
    }

    fn list(&mut self, depth: usize) -> Result<(Vec<Node>, Closed), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(self.fail(format!("blocks are nested deeper than {MAX_DEPTH}")));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            if let Some(first) = tokens.first() {
                self.line = first.line;
            }
            let word = match tokens.first().map(|token| &token.kind) {
                Some(Kind::Word(word)) => word.as_str(),
                _ => "",
            };
            match word {
                "if" => nodes.push(self.block(Block::If, &tokens[1..], depth)?),
                "with" => nodes.push(self.block(Block::With, &tokens[1..], depth)?),
                "range" => nodes.push(self.block(Block::Range, &tokens[1..], depth)?),
                "end" if tokens.len() == 1 => return Ok((nodes, Closed::Block)),
                "else" => return Ok((nodes, Closed::Else(tokens[1..].to_vec()))),
                "break" | "continue" if tokens.len() == 1 => {
                    if self.loops == 0 {
                        return Err(self.fail(format!("{{{{{word}}}}} outside {{{{range}}}}")));
                    }
                    nodes.push(if word == "break" {
                        Node::Break
                    } else {
                        Node::Continue
                    });
                }
                "define" | "template" | "block" => {
                    return Err(self.fail(format!("{{{{{word}}}}} is not known here")));
                }
                _ => nodes.push(Node::Action(self.whole(&tokens, depth, 1)?)),
            }
        }
        Ok((nodes, Closed::Source))
    }

    fn block(&mut self, block: Block, tokens: &[Token], depth: usize) -> Result<Node, TemplateError> {
        let scope = self.variables.len();
        let most = if block == Block::Range { 2 } else { 1 };
        let pipeline = self.whole(tokens, depth, most)?;
        if block == Block::Range {
            self.loops += 1;
        }
        let (then, end) = self.list(depth + 1)?;
        if block == Block::Range {
            self.loops -= 1;
        }
        let otherwise = match end {
            Closed::Block => Vec::new(),
            Closed::Source => return Err(self.fail("unexpected end of the template: {{end}} is missing")),
            Closed::Else(tokens) if tokens.is_empty() => match self.list(depth + 1)? {
                (nodes, Closed::Block) => nodes,
                (_, Closed::Else(_)) => return Err(self.fail("expected {{end}}, found {{else}}")),
                (_, Closed::Source) => {
                    return Err(self.fail("unexpected end of the template: {{end}} is missing"));
                }
            },
            Closed::Else(tokens) => {
                // `{{else if}}` shares the `{{end}}` of its block.
                let inner = match tokens.first().map(|token| &token.kind) {
                    Some(Kind::Word(word)) if word == "if" && block == Block::If => Block::If,
                    Some(Kind::Word(word)) if word == "with" && block == Block::With => Block::With,
                    _ => return Err(self.fail("unexpected text after else")),
                };
                vec![self.block(inner, &tokens[1..], depth + 1)?]
            }
        };
        self.variables.truncate(scope);
        Ok(match block {
            Block::If => Node::If {
                condition: pipeline,
                then,
                otherwise,
            },
            Block::With => Node::With {
                value: pipeline,
                then,
                otherwise,
            },
            Block::Range => Node::Range {
                over: pipeline,
                body: then,
                otherwise,
            },
        })
    }

    /// A pipeline that is all of the tokens.
    fn whole(&mut self, tokens: &[Token], depth: usize, most: usize) -> Result<Pipeline, TemplateError> {
        let (pipeline, rest) = self.pipeline(tokens, depth, most)?;
        match rest.first() {
            None => Ok(pipeline),
            Some(_) => Err(self.fail("unexpected \")\"")),
        }
    }

    /// A pipeline up to the end or a closing parenthesis.
    fn pipeline<'a>(
        &mut self,
        tokens: &'a [Token],
        depth: usize,
        most: usize,
    ) -> Result<(Pipeline, &'a [Token]), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(self.fail(format!("parentheses are nested deeper than {MAX_DEPTH}")));
        }
        let (variables, declares, mut rest) = self.declaration(tokens, most)?;
        let mut commands: Vec<Vec<Operand>> = vec![Vec::new()];
        let line = self.line;
        while let Some(token) = rest.first() {
            match token.kind {
                Kind::Close => break,
                Kind::Pipe => {
                    commands.push(Vec::new());
                    rest = &rest[1..];
                    continue;
                }
                _ => {}
            }
            let (operand, after) = self.operand(rest, depth)?;
            rest = after;
            if let Some(command) = commands.last_mut() {
                command.push(operand);
            }
            if rest
                .first()
                .is_some_and(|next| !next.is_spaced && !matches!(next.kind, Kind::Close | Kind::Pipe))
            {
                return Err(self.fail("operands need a space between them"));
            }
        }
        for (n, command) in commands.iter().enumerate() {
            self.check_command(command, n > 0)?;
        }
        if declares {
            self.variables.extend(variables.iter().cloned());
        }
        let pipeline = Pipeline {
            line,
            variables,
            declares,
            commands,
        };
        Ok((pipeline, rest))
    }

    /// `$x :=`, `$x =` or `$i, $x :=` at the start.
    fn declaration<'a>(
        &self,
        tokens: &'a [Token],
        most: usize,
    ) -> Result<(Vec<String>, bool, &'a [Token]), TemplateError> {
        let kinds = |n: usize| tokens.get(n).map(|token| &token.kind);
        let (names, after) = match (kinds(0), kinds(1), kinds(2), kinds(3)) {
            (Some(Kind::Variable(first)), Some(Kind::Declare | Kind::Assign), _, _) => {
                (vec![first.clone()], 1)
            }
            (
                Some(Kind::Variable(first)),
                Some(Kind::Comma),
                Some(Kind::Variable(second)),
                Some(Kind::Declare | Kind::Assign),
            ) => (vec![first.clone(), second.clone()], 3),
            _ => return Ok((Vec::new(), false, tokens)),
        };
        if names.len() > most {
            return Err(self.fail("too many declarations"));
        }
        if names.iter().any(String::is_empty) {
            return Err(self.fail("$ cannot be set"));
        }
        let declares = kinds(after) == Some(&Kind::Declare);
        if !declares && let Some(name) = names.iter().find(|name| !self.variables.contains(name)) {
            return Err(self.fail(format!("undefined variable \"${name}\"")));
        }
        Ok((names, declares, &tokens[after + 1..]))
    }

    fn operand<'a>(
        &mut self,
        tokens: &'a [Token],
        depth: usize,
    ) -> Result<(Operand, &'a [Token]), TemplateError> {
        let Some((token, mut rest)) = tokens.split_first() else {
            return Err(self.fail("missing value"));
        };
        let operand = match &token.kind {
            Kind::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                name if functions::is_known(name) => Operand::Function(name.to_owned()),
                name => return Err(self.fail(format!("function \"{name}\" not defined"))),
            },
            Kind::Field(name) => Operand::Chain(Box::new(Operand::Dot), vec![name.clone()]),
            Kind::Variable(name) => {
                if !self.variables.contains(name) {
                    return Err(self.fail(format!("undefined variable \"${name}\"")));
                }
                Operand::Variable(name.clone())
            }
            Kind::Dot => Operand::Dot,
            Kind::Text(text) => Operand::Text(text.clone()),
            Kind::Number(number) => Operand::Number(*number),
            Kind::Open => {
                let (inner, after) = self.pipeline(rest, depth + 1, 0)?;
                match after.split_first() {
                    Some((close, after)) if close.kind == Kind::Close => rest = after,
                    _ => return Err(self.fail("unclosed left parenthesis")),
                }
                Operand::Nested(Box::new(inner))
            }
            Kind::Pipe | Kind::Close => return Err(self.fail("missing value")),
            Kind::Declare | Kind::Assign | Kind::Comma => {
                return Err(self.fail("unexpected := or = or , in operand"));
            }
        };
        let mut fields = Vec::new();
        while let Some((next, after)) = rest.split_first() {
            let Kind::Field(name) = &next.kind else { break };
            if next.is_spaced {
                break;
            }
            fields.push(name.clone());
            rest = after;
        }
        let operand = match operand {
            _ if fields.is_empty() => operand,
            Operand::Chain(base, mut first) => {
                first.extend(fields);
                Operand::Chain(base, first)
            }
            Operand::Dot | Operand::Variable(_) | Operand::Nested(_) => {
                Operand::Chain(Box::new(operand), fields)
            }
            _ => {
                return Err(self.fail(format!(
                    "unexpected .{} after a constant or a function",
                    fields[0]
                )));
            }
        };
        Ok((operand, rest))
    }

    fn check_command(&self, command: &[Operand], is_piped: bool) -> Result<(), TemplateError> {
        match command {
            [] => Err(self.fail("missing value for command")),
            [Operand::Function(name), arguments @ ..] => {
                if arguments
                    .iter()
                    .any(|argument| matches!(argument, Operand::Function(_)))
                {
                    return Err(self.fail("a function as an argument needs parentheses"));
                }
                functions::check_arguments(name, arguments.len() + usize::from(is_piped))
                    .map_err(|text| self.fail(text))?;
                match (name.as_str(), arguments.first()) {
                    ("printf", Some(Operand::Text(format))) => {
                        printf::check(format).map_err(|text| self.fail(text))
                    }
                    _ => Ok(()),
                }
            }
            [_] if is_piped => Err(self.fail("non executable command in pipeline")),
            [Operand::Nil] => Err(self.fail("nil is not a command")),
            [_] => Ok(()),
            [_, ..] => Err(self.fail("can't give argument to non-function")),
        }
    }
}
