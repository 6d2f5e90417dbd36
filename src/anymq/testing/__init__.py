"""The contract suite: what the cases in contract_tests/ stand on. Ships in the wheel.

    pytest --pyargs anymq.testing --anymq-url myscheme://host    the suite against one broker

history    what happened in a run, as events
findings   the anomalies that a history can show
checker    one pass over a history that names every anomaly in it
profile    which of them must not occur, by what a broker promises
contract   @contract and the registry of cases
scenario   what a case works with
verdict    from what a case saw, and the level declared, to the outcome of a cell
columns    the brokers that the suite runs against
runner     cases by columns, with deadlines and progress
plugin     the same as pytest items
stateful   random programs against a broker, judged in the same way and shrunk to a witness
mutants    broken brokers that the suite must catch
"""
