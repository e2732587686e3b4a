import torch
from torch import nn
from torch.utils.data import Dataset


class Chunks(Dataset):
    """A text in columns that are read side by side, in chunks of `length` words; the last one is shorter."""

    def __init__(self, words=450, columns=4, length=7, seed=0):
        generator = torch.Generator().manual_seed(seed)
        text = torch.cat(
            [torch.arange(9).roll(int(torch.randint(9, (), generator=generator))) for _ in range(words // 9)]
        )
        self.columns = text[: len(text) // columns * columns].view(columns, -1).t().contiguous()
        self.length = length

    def __len__(self):
        return (len(self.columns) + self.length - 2) // self.length

    def __getitem__(self, index):
        begin = index * self.length
        end = min(begin + self.length, len(self.columns) - 1)
        return {"words": self.columns[begin:end], "next": self.columns[begin + 1 : end + 1], "first": index == 0}


class LSTMModel(nn.Module):
    def __init__(self, words=9, width=12, dropout=0.2):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder, self.rnn = nn.Embedding(words, width), nn.LSTM(width, width)
        self.decoder = nn.Linear(width, words)

    def forward(self, words, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(words)), hidden)
        return self.decoder(self.drop(output)), hidden


class Truncated:
    """Backpropagation through a chunk; the hidden state goes on to the next one without its graph."""

    def __init__(self):
        self.hidden = {True: None, False: None}

    def __call__(self, batch, model, loss):
        words, following = batch["words"][0], batch["next"][0]
        before = None if batch["first"][0] else self.hidden[model.training]
        output, hidden = model(words, before)
        self.hidden[model.training] = tuple(part.detach() for part in hidden)
        return {"loss": loss(output.flatten(0, 1), following.flatten()), "loss_is": "mean", "size": following.numel()}

    def state_dict(self):
        return {"hidden": self.hidden[True] and list(self.hidden[True])}

    def load_state_dict(self, state):
        self.hidden[True] = state["hidden"] and tuple(state["hidden"])
