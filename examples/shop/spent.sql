SELECT customer, sum(amount) AS spent FROM data GROUP BY customer ORDER BY spent DESC
