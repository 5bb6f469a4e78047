// Displays a conversation. Text from users and models is only ever set as textContent.

/** Makes an element: `make("p", {className: "quiet"}, "text", child)`. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Makes a user's message. */
export function userMessage(text) {
  return make("article", { className: "user" }, make("h2", { className: "hidden", textContent: "You" }), prose(text));
}

/** Makes an error that the API reported. */
export function errorMessage(error) {
  const code = [error.status || null, error.code, error.param].filter(Boolean).join(", ");
  const element = make("article", { className: "error" }, make("p", { textContent: error.message }));
  element.setAttribute("role", "alert");
  if (code) element.append(make("p", { className: "quiet", textContent: code }));
  return element;
}

/** Displays an answer as it grows: collapsed reasoning, text, tool calls, figures. */
export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.reasoning = make("div", { className: "reasoning" });
    this.summary = make("summary", { textContent: "Reasoning" });
    this.fold = make("details", { hidden: true }, this.summary, this.reasoning);
    this.body = make("div", { className: "body" });
    this.calls = make("div", { className: "calls" });
    this.figures = make("p", { className: "quiet figures" });
    const name = make("h2", { className: "hidden", textContent: "Model" });
    this.element = make("article", { className: "answer" }, name, this.fold, this.body, this.calls, this.figures);
    this.element.setAttribute("aria-busy", "true");
    this.pending = 0;
  }

  /** Redraws at most once per frame. */
  update() {
    this.pending ||= requestAnimationFrame(() => {
      this.pending = 0;
      this.#draw();
    });
  }

  /** Marks the answer as complete; `note` says why it ended early, if it did. */
  end(note, figures) {
    cancelAnimationFrame(this.pending);
    this.#draw();
    this.element.setAttribute("aria-busy", "false");
    this.summary.textContent = "Reasoning";
    if (note) this.body.append(make("p", { className: "note", textContent: note }));
    this.figures.textContent = figures;
  }

  /** Moves the focus to the field of the first result. */
  focus() {
    this.fields?.[0]?.focus();
  }

  #draw() {
    const { content, reasoning, calls } = this.answer;
    this.fold.hidden = !reasoning;
    this.reasoning.textContent = reasoning;
    this.summary.textContent = content || calls.length ? "Reasoning" : "Reasoning …";
    this.body.replaceChildren(...(content ? [prose(content)] : []));
    this.calls.replaceChildren(...calls.filter(Boolean).map((call) => callLine(call)));
  }

  /** Adds fields in which the user types the calls' results; resolves to the results in order. */
  askForResults() {
    const fields = this.answer.calls.map((call, index) => {
      const field = make("textarea", { rows: 1, className: "code", placeholder: "What the tool returns" });
      field.setAttribute("aria-label", `Result of ${call.function.name}, call ${index + 1}`);
      this.calls.children[index].append(field);
      return field;
    });
    const button = make("button", { type: "button", className: "primary", textContent: "Return results" });
    this.calls.append(button);
    this.fields = fields;
    this.focus();
    return new Promise((resolve) => {
      const done = () => {
        for (const field of fields) field.replaceWith(make("p", { className: "result", textContent: `← ${field.value}` }));
        button.remove();
        resolve(fields.map((field) => field.value));
      };
      button.addEventListener("click", done);
      for (const field of fields) {
        field.addEventListener("keydown", (event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            const next = fields[fields.indexOf(field) + 1];
            if (next) next.focus();
            else done();
          }
        });
      }
    });
  }
}

function callLine(call) {
  return make("div", { className: "call" }, make("code", { textContent: `→ ${call.function.name}(${call.function.arguments})` }));
}

/** Makes text in which blocks between three backticks are code. */
function prose(text) {
  const element = make("div", { className: "prose" });
  text.split(/^```[^\n]*\n?/m).forEach((part, index) => {
    if (part === "") return;
    if (index % 2 === 0) element.append(make("p", { textContent: part.replace(/^\n+|\n+$/g, "") }));
    else element.append(make("pre", {}, make("code", { textContent: part.replace(/\n$/, "") })));
  });
  return element;
}
