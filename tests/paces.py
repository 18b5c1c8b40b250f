"""A pace for the sides of benchmarks, where no other side waits."""


class Steps:
    """A pace that nobody waits for."""

    def __init__(self, number):
        self.num_steps, self.seconds, self.positions, self.losses = number, 0.0, 0.0, []

    def data_is_readable(self):
        pass

    def mark(self):
        return None

    def fetched(self, seconds, items, positions, marks=(None, None)):
        self.seconds, self.positions = self.seconds + float(items), self.positions + positions

    def stepped(self, loss):
        self.losses.append(float(loss))
