//! Evaluates a template.

use std::borrow::Cow;

use super::parser::{Node, Operand, Pipeline};
use super::schema::Facts;
use super::value::{Value, sorted, typed};
use super::{MAX_OUTPUT, MAX_STEPS, TemplateError, functions};

pub(super) fn render<'a>(nodes: &'a [Node], facts: &'a Facts<'a>) -> Result<String, TemplateError> {
    let mut run = Run {
        output: String::new(),
        variables: vec![("", Value::Root(facts))],
        steps: 0,
    };
    run.list(nodes, &Value::Root(facts))?;
    Ok(run.output)
}

struct Run<'a> {
    output: String,
    variables: Vec<(&'a str, Value<'a>)>,
    steps: usize,
}

/// How a list of nodes ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

type Outcome<T> = Result<T, TemplateError>;

impl<'a> Run<'a> {
    fn list(&mut self, nodes: &'a [Node], dot: &Value<'a>) -> Outcome<Flow> {
        for node in nodes {
            self.step()?;
            let flow = match node {
                Node::Text(text) => {
                    self.write(text)?;
                    Flow::On
                }
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        let mut text = String::new();
                        value.print(&mut text).map_err(TemplateError::Execution)?;
                        self.write(&text)?;
                    } else {
                        self.set(pipeline, 0, value);
                    }
                    Flow::On
                }
                Node::If {
                    condition,
                    then,
                    otherwise,
                } => self.scoped(|run| {
                    let value = run.pipeline(condition, dot)?;
                    let branch = if value.is_true() { then } else { otherwise };
                    run.set(condition, 0, value);
                    run.list(branch, dot)
                })?,
                Node::With {
                    value,
                    then,
                    otherwise,
                } => self.scoped(|run| {
                    let found = run.pipeline(value, dot)?;
                    run.set(value, 0, found.clone());
                    if found.is_true() {
                        run.list(then, &found)
                    } else {
                        run.list(otherwise, dot)
                    }
                })?,
                Node::Range {
                    over,
                    body,
                    otherwise,
                } => self.scoped(|run| run.range(over, body, otherwise, dot))?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        over: &'a Pipeline,
        body: &'a [Node],
        otherwise: &'a [Node],
        dot: &Value<'a>,
    ) -> Outcome<Flow> {
        let value = self.pipeline(over, dot)?;
        let items: Vec<(Value<'a>, Value<'a>)> = match value {
            Value::List(element, items) => (0..)
                .zip(items)
                .map(|(n, item)| (Value::Number(n), typed(element, Some(item))))
                .collect(),
            Value::Map(element, map) => sorted(map)
                .into_iter()
                .map(|(key, item)| (Value::Text(Cow::Borrowed(key)), typed(element, Some(item))))
                .collect(),
            Value::Number(count) => {
                let count = usize::try_from(count).unwrap_or_default();
                if count > MAX_STEPS {
                    return Err(TemplateError::TooManySteps);
                }
                (0..)
                    .take(count)
                    .map(|n| (Value::Number(n), Value::Number(n)))
                    .collect()
            }
            Value::Missing | Value::Nil => Vec::new(),
            other => {
                let text = format!("range can't iterate over {}", other.type_name());
                return Err(TemplateError::Execution(text));
            }
        };
        if items.is_empty() {
            return self.list(otherwise, dot);
        }
        for (key, item) in items {
            self.step()?;
            let flow = self.scoped(|run| {
                if over.variables.len() == 2 {
                    run.set(over, 0, key);
                    run.set(over, 1, item.clone());
                } else {
                    run.set(over, 0, item.clone());
                }
                run.list(body, &item)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    /// Variables that are declared inside are gone afterwards.
    fn scoped<T>(&mut self, run: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        let scope = self.variables.len();
        let outcome = run(self);
        self.variables.truncate(scope);
        outcome
    }

    fn set(&mut self, pipeline: &'a Pipeline, which: usize, value: Value<'a>) {
        let Some(name) = pipeline.variables.get(which) else {
            return;
        };
        if pipeline.declares {
            self.variables.push((name, value));
        } else if let Some((_, held)) = self.variables.iter_mut().rev().find(|(held, _)| held == name) {
            *held = value;
        }
    }

    fn pipeline(&mut self, pipeline: &'a Pipeline, dot: &Value<'a>) -> Outcome<Value<'a>> {
        let mut value = None;
        for command in &pipeline.commands {
            self.step()?;
            value = Some(self.command(command, dot, value)?);
        }
        // The parser refuses empty pipelines.
        Ok(value.unwrap_or(Value::Nil))
    }

    fn command(
        &mut self,
        command: &'a [Operand],
        dot: &Value<'a>,
        piped: Option<Value<'a>>,
    ) -> Outcome<Value<'a>> {
        let (name, arguments) = match command {
            [Operand::Function(name), arguments @ ..] => (name.as_str(), arguments),
            [operand, ..] => return self.operand(operand, dot),
            [] => return Ok(Value::Nil),
        };
        if name == "and" || name == "or" {
            // The first that decides; what stands behind it is not evaluated.
            let decides = |value: &Value<'a>| value.is_true() == (name == "or");
            let mut last = Value::Nil;
            for argument in arguments {
                last = self.operand(argument, dot)?;
                if decides(&last) {
                    return Ok(last);
                }
            }
            return Ok(piped.unwrap_or(last));
        }
        let mut values = Vec::with_capacity(arguments.len() + 1);
        for argument in arguments {
            values.push(self.operand(argument, dot)?);
        }
        values.extend(piped);
        let value = functions::call(name, values)
            .map_err(|text| TemplateError::Execution(format!("error calling {name}: {text}")))?;
        if let Value::Text(text) = &value
            && text.len() > MAX_OUTPUT
        {
            return Err(TemplateError::OutputTooLong);
        }
        Ok(value)
    }

    fn operand(&mut self, operand: &'a Operand, dot: &Value<'a>) -> Outcome<Value<'a>> {
        Ok(match operand {
            Operand::Dot => dot.clone(),
            Operand::Nil => Value::Missing,
            Operand::Bool(value) => Value::Bool(*value),
            Operand::Number(value) => Value::Number(*value),
            Operand::Text(text) => Value::Text(Cow::Borrowed(text)),
            Operand::Function(name) => {
                return Err(TemplateError::Execution(format!("{name} is not a value")));
            }
            Operand::Variable(name) => {
                let held = self.variables.iter().rev().find(|(held, _)| held == name);
                held.map_or(Value::Nil, |(_, value)| value.clone())
            }
            Operand::Nested(pipeline) => self.pipeline(pipeline, dot)?,
            Operand::Chain(base, fields) => {
                let mut value = self.operand(base, dot)?;
                for field in fields {
                    self.step()?;
                    value = value.field(field).map_err(TemplateError::Execution)?;
                }
                value
            }
        })
    }

    fn write(&mut self, text: &str) -> Outcome<()> {
        if self.output.len() + text.len() > MAX_OUTPUT {
            return Err(TemplateError::OutputTooLong);
        }
        self.output.push_str(text);
        Ok(())
    }

    fn step(&mut self) -> Outcome<()> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(TemplateError::TooManySteps);
        }
        Ok(())
    }
}
