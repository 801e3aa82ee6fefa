"""The chat command: answers, commands, interruptions."""

from toy import WINDOW

from runtime_py import GREEDY
from runtime_py.cli import main
from runtime_py.commands.chat import HELP
from runtime_py.conversation import Conversation
from runtime_py.cost_table import CostTable
from runtime_py.generation import Generation
from runtime_py.session import Session
from runtime_py.stats import Stats


def test_chat_without_input_is_refused(run, monkeypatch, artifact_folder, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["chat", str(artifact_folder)]) == 1
    assert "standard input, which is closed" in capsys.readouterr().err


def test_chat_talks_and_obeys_commands(run, engine):
    lines = ["/help", "/stats", "/set temperature 0", "/set max_tokens 4", "the", "/stats", "in", "/set top_p 7",
             "/set nothing 1", "/set top_k x", "/nonsense", "/set", "", "x" * 200, "/reset", "/stats", "/exit", "in"]
    code, out, err = run("chat", stdin="\n".join(lines) + "\n")
    assert code == 0 and HELP in out and "no answer yet" in out and "decode 4 tokens" in out
    assert "temperature 0.0, top_p 0.9, top_k 0, repetition_penalty 1.0, seed None, max_tokens 4\n" in out
    expected = Conversation(engine)
    for question in ("the", "in"):
        answer = expected.ask(question, GREEDY, 4)
        list(answer)
        assert f"\n{answer.text}\n" in out
    for complaint in ("top_p: expected", "unknown setting 'nothing'", "top_k: expected a number",
                      "unknown command '/nonsense'", "do not fit into the context window"):
        assert complaint in err
    held = 1 + len(engine.tokenizer.encode("<U>the<A>")) + 3
    assert f"context {held} of {WINDOW} tokens" in out and f"context 0 of {WINDOW} tokens" in out


def test_ctrl_c_breaks_an_answer_off_and_the_conversation_goes_on(run, monkeypatch):
    plain = Generation.__next__

    def interrupted(generation):
        if len(generation.ids) == 2 and generation.max_tokens == 7:
            raise KeyboardInterrupt
        return plain(generation)
    monkeypatch.setattr(Generation, "__next__", interrupted)
    code, out, err = run("chat", "--max-tokens", 7, stdin="the\n/set max_tokens 3\nin\n/stats\n")
    assert code == 0 and "[broken off]" in err and "decode 3 tokens" in out


def test_ctrl_c_while_the_question_is_read_keeps_the_chat(run, monkeypatch):
    plain = Conversation.ask

    def interrupted(conversation, question, *arguments):
        if question == "slow":
            raise KeyboardInterrupt
        return plain(conversation, question, *arguments)
    monkeypatch.setattr(Conversation, "ask", interrupted)
    code, out, err = run("chat", "--max-tokens", 3, stdin="slow\nthe\n/stats\n")
    assert code == 0 and "[broken off]" in err and "decode 3 tokens" in out


def test_ctrl_c_inside_a_pass_over_drafts_leaves_figures(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(Session, "tree", interrupted)
    code, out, err = run("chat", "--draft", "ngram", "--tree-size", 4, "--repetition-penalty", 0.1,
                         stdin="the the the the\n/stats\n")
    assert code == 0 and "[broken off]" in err and "first token after" in out
    assert "drafted" not in str(Stats(generated_tokens=1, drafted=7))  # where it was the first pass


def test_figures_say_that_drafts_would_not_pay(run, monkeypatch):
    """Every node costs a pass."""
    monkeypatch.setattr("runtime_py.engine.cost_table", lambda *_, **__: CostTable((1, 2, 4), (1.0, 2.0, 4.0)))
    for draft, said in (("ngram", True), ("none", False)):
        out = run("chat", "--max-tokens", 3, "--draft", draft, stdin="the\n/stats\n")[1]
        assert ("no drafts: by what passes cost here" in out) == said


def test_settings_can_be_taken_back(run):
    lines = "/set max_tokens 3\n/set seed 4\n/set max_tokens none\n/set seed none\n/set\n/set top_k none\n"
    code, out, err = run("chat", stdin=lines)
    assert code == 0 and "seed None, max_tokens None" in out and "top_k: expected a number, found 'none'" in err


def test_chat_starts_from_the_artifacts_defaults_and_ends_with_the_input(run):
    code, out, _ = run("chat", "--top-p", "0.5", "--seed", 1, stdin="/set\n")
    assert code == 0 and "temperature 0.8, top_p 0.5" in out and "seed 1" in out


def test_chat_reports_drafts(run):
    lines = "the ing\n/stats\n"
    options = ("--temperature", 0, "--max-tokens", 12, "--repetition-penalty", 0.1)
    plain = run("chat", *options, "--draft", "none", stdin=lines)[1]
    drafted = run("chat", *options, "--draft", "ngram", "--tree-size", 4, stdin=lines)[1]
    assert plain.splitlines()[0] == drafted.splitlines()[0]
    assert "new tokens per pass" in drafted and "new tokens per pass" not in plain
